//! Lease values: the JSON a node publishes about itself.
//!
//! Written byte for byte as Go's `encoding/json` writes flannel's `LeaseAttrs`: fixed key order,
//! `PublicIPv6` present even when `null`, empty fields left out, `<`, `>` and `&` escaped. Read as
//! Go reads it: keys in any case, unknown keys ignored, the last of repeated keys wins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::go::{
    json::{JsonError, Object},
    marshal,
};

/// What a node says about itself in its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseAttrs {
    /// Where peers send IPv4 pods' tunnel packets; unspecified in a cluster without IPv4.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// Where they send IPv6 pods'.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// Empty for the udp and alloc backends.
    #[serde(rename = "BackendType", skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// JSON text without insignificant blanks.
    #[serde(
        rename = "BackendData",
        skip_serializing_if = "Option::is_none",
        serialize_with = "as_json"
    )]
    pub backend_data: Option<String>,
    #[serde(
        rename = "BackendV6Data",
        skip_serializing_if = "Option::is_none",
        serialize_with = "as_json"
    )]
    pub backend_v6_data: Option<String>,
}

/// Why the value of a lease key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a flannel lease value: {reason}")]
pub struct ValueError {
    pub reason: String,
}

impl LeaseAttrs {
    /// Attributes of a node that only leases its subnet.
    pub const fn alloc(public_ip: Ipv4Addr) -> Self {
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: String::new(),
            backend_data: None,
            backend_v6_data: None,
        }
    }

    /// The address that identifies the node: flannel's is `PublicIP`, which is the same for all
    /// where there is no IPv4; then it is `PublicIPv6`.
    pub fn node_ip(&self) -> IpAddr {
        match self.public_ipv6 {
            Some(address) if self.public_ip.is_unspecified() => address.into(),
            _ => self.public_ip.into(),
        }
    }

    /// Adds what a node of a cluster with IPv6 says; the data is its backend's, if that has any.
    #[must_use]
    pub fn with_ipv6(mut self, public_ipv6: Ipv6Addr, data: Option<String>) -> Self {
        self.public_ipv6 = Some(public_ipv6);
        self.backend_v6_data = data;
        self
    }

    /// The text flannel would write.
    pub fn encode(&self) -> String {
        marshal::to_string(self)
    }

    /// Reads a value written by any flannel release, or by hand.
    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let text = String::from_utf8_lossy(value);
        // Go reads an empty record there, which no node publishes.
        if text.trim() == "null" {
            let reason = "null".to_owned();
            return Err(ValueError { reason });
        }
        let object = Object::parse(&text, "the value")?;
        // A missing PublicIP is 0.0.0.0, as Go's zero value is.
        let public_ip = object.decoded("PublicIP", "an IPv4 address")?;
        let public_ipv6 = object.decoded("PublicIPv6", "an IPv6 address")?;
        let data = |key| {
            let json = object.raw(key).filter(|json| *json != "null");
            json.map(marshal::compact)
        };
        Ok(Self {
            public_ip: public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: public_ipv6.flatten(),
            backend_type: object.string("BackendType")?,
            backend_data: data("BackendData"),
            backend_v6_data: data("BackendV6Data"),
        })
    }
}

impl From<JsonError> for ValueError {
    fn from(error: JsonError) -> Self {
        Self {
            reason: error.to_string(),
        }
    }
}

/// JSON as a part of the whole, `null` for what is none.
#[expect(clippy::ref_option, reason = "serde hands over the field")]
fn as_json<S: Serializer>(json: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let json: Option<&RawValue> = json
        .as_deref()
        .and_then(|json| serde_json::from_str(json).ok());
    json.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 3);

    #[test]
    fn values_are_written_byte_for_byte_as_flannel_writes_them() {
        let vxlan = LeaseAttrs {
            backend_type: "vxlan".to_owned(),
            backend_data: Some(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#.to_owned()),
            ..LeaseAttrs::alloc(NODE)
        };
        let node6 = "fd00::3".parse().unwrap();
        let vxlan6 = Some(r#"{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"}"#.to_owned());
        let ipv6 = LeaseAttrs {
            backend_type: "vxlan".to_owned(),
            ..LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED).with_ipv6(node6, vxlan6.clone())
        };
        let host_gw = LeaseAttrs {
            backend_type: "host-gw".to_owned(),
            ..LeaseAttrs::alloc(NODE)
        };
        let extension = LeaseAttrs {
            backend_type: "extension".to_owned(),
            backend_data: Some(r#""<a> & b+/=""#.to_owned()),
            ..LeaseAttrs::alloc(NODE)
        };
        for (attrs, text) in [
            (
                vxlan.clone(),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                vxlan.with_ipv6(node6, vxlan6),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"}}"#,
            ),
            (
                ipv6,
                r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"}}"#,
            ),
            (
                host_gw.clone(),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
            ),
            (
                host_gw.with_ipv6(node6, None),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"host-gw"}"#,
            ),
            (
                LeaseAttrs::alloc(NODE),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#,
            ),
            (
                extension,
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"extension","BackendData":"\u003ca\u003e \u0026 b+/="}"#,
            ),
        ] {
            assert_eq!(attrs.encode(), text);
        }
    }

    #[test]
    fn every_written_value_reads_back_equal() {
        for text in [
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"wireguard","BackendData":{"PublicKey":"K+/=","Port":51820},"BackendV6Data":{"PublicKey":"K","Port":51821}}"#,
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#,
        ] {
            let attrs = LeaseAttrs::decode(text.as_bytes()).unwrap();
            assert_eq!(attrs.encode(), text);
        }
    }

    #[test]
    fn old_and_hand_written_values_are_understood() {
        let by_hand = br#" { "publicip" : "10.0.0.1", "PUBLICIP": "10.0.0.2", "extra": [1, {}],
            "backendtype": null, "BackendData": { "vtepmac" : "aabb.ccdd.ee0f", "a": "x \" y" } } "#;
        let attrs = LeaseAttrs::decode(by_hand).unwrap();
        assert_eq!(attrs.public_ip, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(attrs.backend_type, "");
        assert_eq!(
            attrs.backend_data.as_deref(),
            Some(r#"{"vtepmac":"aabb.ccdd.ee0f","a":"x \" y"}"#)
        );
        assert_eq!(
            LeaseAttrs::decode(b"{}"),
            Ok(LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED))
        );
    }

    #[test]
    fn values_go_would_refuse_are_refused() {
        for text in [
            "",
            "[]",
            r#"{"PublicIP":null}"#,
            r#"{"PublicIP":"fd00::1"}"#,
            r#"{"PublicIP":"10.0.0.1"} x"#,
            r#"{"PublicIP":"10.0.0.1","BackendType":5}"#,
            r#"{"PublicIP":"10.0.0.1","PublicIPv6":"10.0.0.1"}"#,
        ] {
            assert!(LeaseAttrs::decode(text.as_bytes()).is_err(), "{text}");
        }
    }
}
