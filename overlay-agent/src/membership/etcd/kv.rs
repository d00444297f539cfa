//! One record of etcd.

use std::fmt;

/// A key as etcd has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Kv {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// 0 for none.
    pub lease: i64,
    pub create_revision: i64,
    pub mod_revision: i64,
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (self.key.escape_ascii(), self.value.escape_ascii());
        let (lease, revision) = (self.lease, self.mod_revision);
        write!(f, "{key} = {value} (lease {lease}, revision {revision})")
    }
}
