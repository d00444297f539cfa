//! Lease values: the JSON a node publishes about itself.
//!
//! Written byte for byte as Go's `encoding/json` writes flannel's `LeaseAttrs`: fixed key order,
//! `PublicIPv6` present even when `null`, empty fields left out, `<`, `>` and `&` escaped. Read as
//! Go reads it: keys in any case, unknown keys ignored, the last of repeated keys wins.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use overlay_common::addr::MacAddr;
use serde::{
    Deserialize,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

/// What a node says about itself in its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Where peers send IPv4 pods' tunnel packets; unspecified in a cluster without IPv4.
    pub public_ip: Ipv4Addr,
    /// Where they send IPv6 pods'.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Empty for the udp and alloc backends.
    pub backend_type: String,
    /// JSON text without insignificant blanks.
    pub backend_data: Option<String>,
    pub backend_v6_data: Option<String>,
}

/// Why the value of a lease key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not a flannel lease value: {reason}")]
pub struct ValueError {
    pub reason: String,
}

/// The vxlan backend's part of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanData {
    /// Absent in leases of flannel before v0.15, and ignored by receivers.
    pub vni: Option<u32>,
    pub vtep_mac: MacAddr,
    /// The device takes IPv6 tunnel packets with UDP checksum 0. flannel knows no such key: it
    /// ignores it, and writes a value of its own without it.
    pub zero_checksum: bool,
}

impl LeaseAttrs {
    /// Attributes of a vxlan node in an IPv4 cluster.
    pub fn vxlan(public_ip: Ipv4Addr, vni: u32, vtep_mac: MacAddr) -> Self {
        Self {
            backend_type: "vxlan".to_owned(),
            backend_data: Some(VxlanData::new(vni, vtep_mac).encode()),
            ..Self::alloc(public_ip)
        }
    }

    pub fn host_gw(public_ip: Ipv4Addr) -> Self {
        Self {
            backend_type: "host-gw".to_owned(),
            ..Self::alloc(public_ip)
        }
    }

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

    /// Adds what a node of a cluster with IPv6 says; `vxlan` is about its device for IPv6, if it has
    /// one.
    #[must_use]
    pub fn with_ipv6(mut self, public_ipv6: Ipv6Addr, vxlan: Option<VxlanData>) -> Self {
        self.public_ipv6 = Some(public_ipv6);
        self.backend_v6_data = vxlan.map(VxlanData::encode);
        self
    }

    /// The vxlan data, if there is any with a usable MAC address.
    pub fn vxlan_data(&self) -> Option<VxlanData> {
        VxlanData::parse(self.backend_data.as_deref()?)
    }

    /// The vxlan data of the IPv6 overlay.
    pub fn vxlan_v6_data(&self) -> Option<VxlanData> {
        VxlanData::parse(self.backend_v6_data.as_deref()?)
    }

    /// The text flannel would write.
    pub fn encode(&self) -> String {
        let mut out = format!(r#"{{"PublicIP":"{}","PublicIPv6":"#, self.public_ip);
        match self.public_ipv6 {
            Some(address) => push_string(&mut out, &address.to_string()),
            None => out.push_str("null"),
        }
        if !self.backend_type.is_empty() {
            out.push_str(r#","BackendType":"#);
            push_string(&mut out, &self.backend_type);
        }
        for (name, data) in [
            ("BackendData", &self.backend_data),
            ("BackendV6Data", &self.backend_v6_data),
        ] {
            if let Some(data) = data {
                let _ = write!(out, r#","{name}":"#);
                data.chars().for_each(|c| push_html_safe(&mut out, c));
            }
        }
        out.push('}');
        out
    }

    /// Reads a value written by any flannel release, or by hand.
    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        serde_json::from_str(&String::from_utf8_lossy(value)).map_err(|error| ValueError {
            reason: error.to_string(),
        })
    }
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

    fn encode(self) -> String {
        let vni = self
            .vni
            .map_or(String::new(), |vni| format!(r#""VNI":{vni},"#));
        let zero_checksum = if self.zero_checksum {
            r#","ZeroCsum6":true"#
        } else {
            ""
        };
        let mac = self.vtep_mac;
        format!(r#"{{{vni}"VtepMAC":"{mac}"{zero_checksum}}}"#)
    }

    fn parse(json: &str) -> Option<Self> {
        struct Parsed(Option<VxlanData>);

        impl<'de> Deserialize<'de> for Parsed {
            fn deserialize<D: de::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                struct Fields;

                impl<'de> Visitor<'de> for Fields {
                    type Value = Parsed;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("vxlan backend data")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
                        let (mut vni, mut mac, mut zero_checksum) = (None, None, false);
                        while let Some(key) = map.next_key::<String>()? {
                            match key.to_ascii_lowercase().as_str() {
                                "vni" => vni = map.next_value()?,
                                "vtepmac" => mac = map.next_value::<Option<String>>()?,
                                // Whatever else a node says there, packets with a checksum are
                                // right.
                                "zerocsum6" => {
                                    zero_checksum = map.next_value::<&RawValue>()?.get() == "true";
                                }
                                _ => drop(map.next_value::<IgnoredAny>()?),
                            }
                        }
                        let vtep_mac = mac.and_then(|mac| mac.parse().ok());
                        Ok(Parsed(vtep_mac.map(|vtep_mac| VxlanData {
                            vni,
                            vtep_mac,
                            zero_checksum,
                        })))
                    }
                }

                input.deserialize_map(Fields)
            }
        }

        serde_json::from_str::<Parsed>(json).ok()?.0
    }
}

impl<'de> Deserialize<'de> for LeaseAttrs {
    fn deserialize<D: de::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = LeaseAttrs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with PublicIP and backend data")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LeaseAttrs, A::Error> {
                // A missing PublicIP is 0.0.0.0, as Go's zero value is.
                let mut attrs = LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED);
                while let Some(key) = map.next_key::<String>()? {
                    match key.to_ascii_lowercase().as_str() {
                        "publicip" => attrs.public_ip = map.next_value()?,
                        "publicipv6" => attrs.public_ipv6 = map.next_value()?,
                        "backendtype" => {
                            if let Some(backend_type) = map.next_value()? {
                                attrs.backend_type = backend_type;
                            }
                        }
                        "backenddata" => attrs.backend_data = compact(map.next_value()?),
                        "backendv6data" => attrs.backend_v6_data = compact(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(attrs)
            }
        }

        input.deserialize_map(Fields)
    }
}

/// JSON text without blanks between tokens; `None` for `null`.
fn compact(json: Option<Box<RawValue>>) -> Option<String> {
    let json = json?;
    let (mut out, mut quoted, mut escaped) = (String::new(), false, false);
    for c in json.get().chars() {
        if !quoted && c.is_ascii_whitespace() {
            continue;
        }
        out.push(c);
        match c {
            '"' if !escaped => quoted = !quoted,
            '\\' if quoted => {
                escaped = !escaped;
                continue;
            }
            _ => {}
        }
        escaped = false;
    }
    (out != "null").then_some(out)
}

fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => push_unicode_escape(out, c),
            c => push_html_safe(out, c),
        }
    }
    out.push('"');
}

/// Go escapes what could end a `<script>`, and the two line separators of JavaScript.
fn push_html_safe(out: &mut String, c: char) {
    match c {
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => push_unicode_escape(out, c),
        c => out.push(c),
    }
}

fn push_unicode_escape(out: &mut String, c: char) {
    let _ = write!(out, "\\u{:04x}", u32::from(c));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 3);

    fn mac(text: &str) -> MacAddr {
        text.parse().unwrap()
    }

    #[test]
    fn values_are_written_byte_for_byte_as_flannel_writes_them() {
        let vtep = mac("c6:d2:32:6f:8f:44");
        let node6 = "fd00::3".parse().unwrap();
        let vxlan6 = Some(VxlanData::new(1, mac("52:0e:8b:10:9a:01")));
        let dual = LeaseAttrs::vxlan(NODE, 1, vtep).with_ipv6(node6, vxlan6);
        let ipv6 = LeaseAttrs {
            backend_type: "vxlan".to_owned(),
            ..LeaseAttrs::alloc(Ipv4Addr::UNSPECIFIED).with_ipv6(node6, vxlan6)
        };
        let extension = LeaseAttrs {
            backend_type: "extension".to_owned(),
            backend_data: Some(r#""<a> & b+/=""#.to_owned()),
            ..LeaseAttrs::alloc(NODE)
        };
        for (attrs, text) in [
            (
                LeaseAttrs::vxlan(NODE, 1, vtep),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
            ),
            (
                dual,
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"}}"#,
            ),
            (
                ipv6,
                r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"52:0e:8b:10:9a:01"}}"#,
            ),
            (
                LeaseAttrs::host_gw(NODE),
                r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
            ),
            (
                LeaseAttrs::host_gw(NODE).with_ipv6(node6, None),
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
        let v0_14 = br#"{"PublicIP":"10.0.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"AA-BB-CC-DD-EE-0F"}}"#;
        let attrs = LeaseAttrs::decode(v0_14).unwrap();
        assert_eq!(
            attrs.vxlan_data(),
            Some(VxlanData {
                vni: None,
                vtep_mac: mac("aa:bb:cc:dd:ee:0f"),
                zero_checksum: false,
            })
        );

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
            attrs.vxlan_data().unwrap().vtep_mac,
            mac("aa:bb:cc:dd:ee:0f")
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

    #[test]
    fn a_node_that_takes_checksum_0_over_ipv6_says_so_in_a_key_of_its_own() {
        let data = VxlanData {
            zero_checksum: true,
            ..VxlanData::new(1, mac("52:0e:8b:10:9a:01"))
        };
        let attrs = LeaseAttrs::vxlan(NODE, 1, mac("c6:d2:32:6f:8f:44"))
            .with_ipv6("fd00::3".parse().unwrap(), Some(data));
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
