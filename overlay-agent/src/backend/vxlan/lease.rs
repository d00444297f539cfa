//! What leases say of a vxlan device, as flannel writes and reads it.

use std::{fmt::Display, net::Ipv4Addr, ops::Not};

use overlay_common::addr::MacAddr;
use serde::{Serialize, Serializer};

use super::Vxlan;
use crate::{
    backend::Kind as _,
    go::{json::Object, marshal},
    model::LeaseAttrs,
};

/// The vxlan backend's part of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VxlanData {
    /// Absent in leases of flannel before v0.15, and ignored by receivers.
    #[serde(rename = "VNI", skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    #[serde(rename = "VtepMAC", serialize_with = "as_text")]
    pub vtep_mac: MacAddr,
    /// The device takes IPv6 tunnel packets with UDP checksum 0. flannel knows no such key: it
    /// ignores it, and writes a value of its own without it.
    #[serde(rename = "ZeroCsum6", skip_serializing_if = "Not::not")]
    pub zero_checksum: bool,
}

impl VxlanData {
    /// A device as flannel's.
    pub const fn new(vni: u32, vtep_mac: MacAddr) -> Self {
        Self {
            vni: Some(vni),
            vtep_mac,
            zero_checksum: false,
        }
    }

    /// The text flannel would write.
    pub fn encode(self) -> String {
        marshal::to_string(&self)
    }

    /// Reads what a node says; `None` without a MAC address.
    pub fn parse(json: &str) -> Option<Self> {
        let object = Object::parse(json, "vxlan backend data").ok()?;
        let mac: Option<String> = object.decoded("VtepMAC", "a text").ok()?.flatten();
        Some(Self {
            vni: object.decoded("VNI", "a number").ok()?.flatten(),
            vtep_mac: mac?.parse().ok()?,
            // Whatever else a node says there, packets with a checksum are right.
            zero_checksum: object.raw("ZeroCsum6") == Some("true"),
        })
    }
}

impl LeaseAttrs {
    /// What a node with this backend says in an IPv4 cluster.
    pub fn vxlan(public_ip: Ipv4Addr, vni: u32, vtep_mac: MacAddr) -> Self {
        Self {
            backend_type: Vxlan::LEASE_TYPE.to_owned(),
            backend_data: Some(VxlanData::new(vni, vtep_mac).encode()),
            ..Self::alloc(public_ip)
        }
    }

    /// The vxlan data, if there is any with a usable MAC address.
    pub fn vxlan_data(&self) -> Option<VxlanData> {
        VxlanData::parse(self.backend_data.as_deref()?)
    }

    /// The vxlan data of the IPv6 overlay.
    pub fn vxlan_v6_data(&self) -> Option<VxlanData> {
        VxlanData::parse(self.backend_v6_data.as_deref()?)
    }
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 3);

    fn mac(text: &str) -> MacAddr {
        text.parse().unwrap()
    }

    #[test]
    fn old_and_hand_written_data_are_understood() {
        let v0_14 = VxlanData::parse(r#"{"VtepMAC":"AA-BB-CC-DD-EE-0F"}"#);
        let expected = VxlanData {
            vni: None,
            vtep_mac: mac("aa:bb:cc:dd:ee:0f"),
            zero_checksum: false,
        };
        assert_eq!(v0_14, Some(expected));
        let by_hand = VxlanData::parse(r#"{ "vtepmac" : "aabb.ccdd.ee0f", "a": "x \" y" }"#);
        assert_eq!(by_hand, Some(expected));
    }

    #[test]
    fn a_node_that_takes_checksum_0_over_ipv6_says_so_in_a_key_of_its_own() {
        let data = VxlanData {
            zero_checksum: true,
            ..VxlanData::new(1, mac("52:0e:8b:10:9a:01"))
        };
        let attrs = LeaseAttrs::vxlan(NODE, 1, mac("c6:d2:32:6f:8f:44"))
            .with_ipv6("fd00::3".parse().unwrap(), Some(data.encode()));
        let text = attrs.encode();
        assert_eq!(
            text,
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01","ZeroCsum6":true}}"#
        );
        let read = LeaseAttrs::decode(text.as_bytes()).unwrap();
        assert_eq!(read, attrs);
        assert_eq!(read.vxlan_v6_data(), Some(data));
    }

    #[test]
    fn checksum_0_is_taken_by_nodes_that_say_true_and_nothing_else_there_spoils_a_lease() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (word, taken) in [
            (r#","ZeroCsum6":true"#, true),
            (r#", "zerocsum6" : true "#, true),
            (r#","ZeroCsum6":false,"ZeroCsum6":true"#, true),
            (r#","ZeroCsum6":true,"ZeroCsum6":false"#, false),
            (r#","ZeroCsum6":false"#, false),
            (r#","ZeroCsum6":null"#, false),
            (r#","ZeroCsum6":1"#, false),
            (r#","ZeroCsum6":1e999"#, false),
            (r#","ZeroCsum6":"true""#, false),
            (r#","ZeroCsum6":[true]"#, false),
            (r#","ZeroCsum6":{"ZeroCsum6":true}"#, false),
            (&format!(r#","ZeroCsum6":{deep}"#), false),
            ("", false),
        ] {
            let text = format!(
                r#"{{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendV6Data":{{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"{word}}}}}"#
            );
            let attrs = LeaseAttrs::decode(text.as_bytes()).unwrap();
            let read = attrs.vxlan_v6_data().map(|data| data.zero_checksum);
            assert_eq!(read, Some(taken), "{word}");
        }
    }

    #[test]
    fn vxlan_data_without_a_usable_mac_is_none() {
        for data in [r#""x""#, "{}", r#"{"VtepMAC":"junk"}"#, r#"{"VtepMAC":7}"#] {
            let attrs = LeaseAttrs {
                backend_data: Some(data.to_owned()),
                ..LeaseAttrs::alloc(NODE)
            };
            assert_eq!(attrs.vxlan_data(), None, "{data}");
        }
    }
}
