//! Leases against a real etcd.

mod etcd;
mod faults;
mod helper;
mod tls;
