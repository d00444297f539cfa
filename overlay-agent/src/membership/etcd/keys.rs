//! From etcd's key space to the words of the agent and back.

use tracing::debug;

use super::{kv::Kv, options};
use crate::{
    config::options::EtcdOptions,
    core::Entry,
    model::{ConfigText, LeaseAttrs, LeaseKey},
};

/// Where things are in etcd's key space.
#[derive(Clone, Debug)]
pub struct Keys {
    pub config: String,
    /// Ends with a slash.
    pub subnets: String,
}

impl Keys {
    pub fn of(options: &EtcdOptions) -> Self {
        Self {
            config: options::key(options, "config"),
            subnets: format!("{}/", options::key(options, "subnets")),
        }
    }

    pub fn lease(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets)
    }

    /// The record of a key; `None` for foreign keys.
    pub fn entry(&self, kv: &Kv) -> Option<Entry> {
        let key = self.parse(kv)?;
        Some(Entry {
            key,
            value: LeaseAttrs::decode(&kv.value),
            lease_id: (kv.lease != 0).then_some(kv.lease),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
        })
    }

    /// The subnet a key names; `None` for foreign keys.
    pub fn parse(&self, kv: &Kv) -> Option<LeaseKey> {
        let text = std::str::from_utf8(&kv.key).ok()?;
        let key = text.strip_prefix(&self.subnets).and_then(LeaseKey::parse);
        if key.is_none() {
            debug!(key = text, "key names no subnet");
        }
        key
    }
}

pub(super) fn config_text(kv: &Kv) -> ConfigText {
    ConfigText {
        text: String::from_utf8_lossy(&kv.value).into_owned(),
        mod_revision: kv.mod_revision,
    }
}
