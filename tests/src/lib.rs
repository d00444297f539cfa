//! The lab.

pub mod etcd;
pub mod pki;
