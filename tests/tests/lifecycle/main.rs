//! What happens to a node while it runs: restarts, changes of the host, moves from and to other backends.

mod absent;
mod anew;
mod backend;
mod device;
mod extension;
mod flannel;
mod host;
mod lease;
mod underlay;
