//! Leases against a real etcd, and a lab on one of three members.

mod etcd;
mod faults;
mod helper;
mod members;
mod old_api;
mod tls;
