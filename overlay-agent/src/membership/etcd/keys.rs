//! From etcd's key space to the words of the agent and back.

use etcd_client::KeyValue;
use tracing::debug;

use super::options;
use crate::{
    config::options::EtcdOptions,
    core::Entry,
    model::{ConfigText, LeaseAttrs, LeaseKey},
};

/// Where things are in etcd's key space.
#[derive(Clone, Debug)]
pub(super) struct Keys {
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
    pub fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let key = self.parse(kv)?;
        Some(Entry {
            key,
            value: LeaseAttrs::decode(kv.value()),
            lease_id: (kv.lease() != 0).then(|| kv.lease()),
            mod_revision: kv.mod_revision(),
        })
    }

    /// The subnet a key names; `None` for foreign keys.
    pub fn parse(&self, kv: &KeyValue) -> Option<LeaseKey> {
        let text = kv.key_str().ok()?;
        let key = text.strip_prefix(&self.subnets).and_then(LeaseKey::parse);
        if key.is_none() {
            debug!(key = text, "key names no subnet");
        }
        key
    }
}

pub(super) fn config_text(kv: &KeyValue) -> ConfigText {
    ConfigText {
        text: String::from_utf8_lossy(kv.value()).into_owned(),
        mod_revision: kv.mod_revision(),
    }
}
