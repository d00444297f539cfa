//! Small clusters from start to end.

mod connectivity;
mod direct;
mod input;
mod interop;
mod peers_file;
mod pods;
mod restart;
mod wire;
