//! Keys and values of leases: what is written reads back, and no input is too strange.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use proptest::{collection::vec, prelude::*};

use super::{LeaseAttrs, LeaseKey};

fn subnet() -> impl Strategy<Value = Ipv4Network> {
    (any::<Ipv4Addr>(), 0..=31_u8).prop_map(|(address, len)| {
        let whole = Ipv4Network::new(address, len).unwrap();
        Ipv4Network::new(whole.network(), len).unwrap()
    })
}

fn subnet6() -> impl Strategy<Value = Ipv6Network> {
    (any::<Ipv6Addr>(), 0..=127_u8).prop_map(|(address, len)| {
        let whole = Ipv6Network::new(address, len).unwrap();
        Ipv6Network::new(whole.network(), len).unwrap()
    })
}

/// JSON as a backend may publish it.
fn json() -> impl Strategy<Value = String> {
    (any::<String>(), any::<u32>()).prop_map(|(text, number)| {
        serde_json::json!({ "Text": text, "Number": number, "List": [text, null] }).to_string()
    })
}

prop_compose! {
    fn attrs()(
        public_ip: Ipv4Addr,
        public_ipv6: Option<Ipv6Addr>,
        backend_type: String,
        backend_data in proptest::option::of(json()),
        backend_v6_data in proptest::option::of(json()),
    ) -> LeaseAttrs {
        LeaseAttrs { public_ip, public_ipv6, backend_type, backend_data, backend_v6_data }
    }
}

/// Data as JSON values: `<`, `>` and `&` are escaped when written and stay so when read.
fn meaning(attrs: &LeaseAttrs) -> (LeaseAttrs, Vec<Option<serde_json::Value>>) {
    let data = [&attrs.backend_data, &attrs.backend_v6_data];
    let values = data.map(|data| Some(serde_json::from_str(data.as_deref()?).unwrap()));
    let rest = LeaseAttrs {
        backend_data: None,
        backend_v6_data: None,
        ..attrs.clone()
    };
    (rest, values.to_vec())
}

proptest! {
    #[test]
    fn every_key_reads_back(
        subnet in proptest::option::of(subnet()),
        subnet6 in proptest::option::of(subnet6()),
    ) {
        prop_assume!(subnet.is_none_or(|subnet| subnet.prefix() > 0));
        let Some(key) = LeaseKey::new(subnet, subnet6) else { return Ok(()) };
        let mapped = subnet6.is_some_and(|s| s.to_string().contains('.'));
        prop_assume!(!mapped);
        prop_assert_eq!(LeaseKey::parse(&format!("/any/prefix/{key}")), Some(key));
    }

    #[test]
    fn every_value_reads_back_and_is_plain_json(attrs in attrs()) {
        let text = attrs.encode();
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        prop_assert!(!text.contains(['<', '>', '&']), "{text}");
        let read = LeaseAttrs::decode(text.as_bytes()).unwrap();
        prop_assert_eq!(meaning(&read), meaning(&attrs));
        prop_assert_eq!(read.encode(), text);
    }

    #[test]
    fn nothing_said_about_checksums_makes_a_lease_unusable(said in json(), yes: bool) {
        let said = if yes { "true".to_owned() } else { said };
        let text = format!(
            r#"{{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendV6Data":{{"ZeroCsum6":{said},"VtepMAC":"02:00:00:00:00:01"}}}}"#
        );
        let attrs = LeaseAttrs::decode(text.as_bytes()).unwrap();
        let read = attrs.vxlan_v6_data().map(|data| data.zero_checksum);
        prop_assert_eq!(read, Some(yes));
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in vec(any::<u8>(), 0..200), text in any::<String>()) {
        let _ = LeaseAttrs::decode(&bytes);
        let _ = LeaseAttrs::decode(text.as_bytes());
        let _ = LeaseKey::parse(&text);
    }

    #[test]
    fn blanks_between_tokens_do_not_matter(attrs in attrs()) {
        let text = attrs.encode();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let spread = serde_json::to_string_pretty(&value).unwrap();
        let read = LeaseAttrs::decode(spread.as_bytes()).unwrap();
        prop_assert_eq!(meaning(&read), meaning(&attrs));
    }
}
