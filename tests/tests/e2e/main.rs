//! Small clusters from start to end.

mod connectivity;
mod direct;
mod input;
mod interop;
mod pods;
mod restart;
mod wire;
