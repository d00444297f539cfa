//! The rules of Go's standard library that decide what a flannel command line or network config
//! means: `flag`, `strconv`, `net` and `encoding/json`.

pub mod args;
pub mod json;
pub mod marshal;
pub mod value;
