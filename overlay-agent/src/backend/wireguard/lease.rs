//! What leases say of a node's WireGuard device, as flannel writes and reads it.

use serde::{Serialize, Serializer};

use super::key::PublicKey;
use crate::go::{json::Object, marshal};

/// The wireguard backend's part of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WireGuardData {
    #[serde(rename = "PublicKey", serialize_with = "as_text")]
    pub(super) public_key: PublicKey,
    /// `None` in leases of flannel before v0.26.6, whose nodes all have the port that this one has.
    #[serde(rename = "Port")]
    pub(super) port: Option<u16>,
}

impl WireGuardData {
    /// The text flannel would write.
    pub fn encode(self) -> String {
        marshal::to_string(&self)
    }

    /// Reads what a node says; `None` without a usable key.
    pub fn parse(json: &str) -> Option<Self> {
        let object = Object::parse(json, "wireguard backend data").ok()?;
        let key: Option<String> = object.decoded("PublicKey", "a text").ok()?.flatten();
        let port: Option<u16> = object.decoded("Port", "a port").ok()?.flatten();
        Some(Self {
            public_key: PublicKey::parse(&key?)?,
            port: port.filter(|port| *port > 0),
        })
    }
}

fn as_text<S: Serializer>(value: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":51820}"#;

    #[test]
    fn the_text_is_flannels_and_that_of_older_ones_is_read() {
        let data = WireGuardData::parse(TEXT).unwrap();
        assert_eq!((data.encode().as_str(), data.port), (TEXT, Some(51820)));
        let old = r#"{ "publickey": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "x": 1 }"#;
        let old = WireGuardData::parse(old).unwrap();
        assert_eq!((old.public_key, old.port), (data.public_key, None));
    }

    #[test]
    fn what_has_no_usable_key_is_none() {
        for text in [
            "{}",
            r#""x""#,
            r#"{"PublicKey":"AAAA"}"#,
            r#"{"PublicKey":7}"#,
            r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":65536}"#,
        ] {
            assert_eq!(WireGuardData::parse(text), None, "{text}");
        }
    }
}
