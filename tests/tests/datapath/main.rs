//! Programs, maps and pins of a node.

mod clsact;
mod full;
mod layout;
mod log;
mod modes;
mod pins;
