use proptest::prelude::*;

use super::*;
use crate::backend::{Alloc, HostGw, Udp, Vxlan};

fn parse(text: &str) -> ParsedNetworkConfig {
    NetworkConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    NetworkConfig::parse(text.as_bytes())
        .expect_err(text)
        .to_string()
}

/// A config with a vxlan backend and these further members.
fn with_vxlan(members: &str) -> String {
    format!(r#"{{{members}, "Backend": {{"Type": "vxlan"}}}}"#)
}

fn ipv4(members: &str) -> (String, String, u8) {
    let pool = parse(&with_vxlan(members))
        .config
        .pools
        .ipv4
        .expect("IPv4 is on");
    (
        pool.subnet_min.to_string(),
        pool.subnet_max.to_string(),
        pool.subnet_len,
    )
}

fn ipv6(members: &str) -> (String, String, u8) {
    let pool = parse(&with_vxlan(members))
        .config
        .pools
        .ipv6
        .expect("IPv6 is on");
    (
        pool.subnet_min.to_string(),
        pool.subnet_max.to_string(),
        pool.subnet_len,
    )
}

fn vxlan(options: &str) -> Vxlan {
    let text = format!(r#"{{"Network": "10.3.0.0/16", "Backend": {options}}}"#);
    match parse(&text).config.backend {
        Backend::Vxlan(vxlan) => vxlan,
        other => panic!("{other:?}"),
    }
}

fn range(min: &str, max: &str, len: u8) -> (String, String, u8) {
    (min.to_owned(), max.to_owned(), len)
}

#[test]
fn the_vectors_of_flannel_give_its_defaults() {
    assert_eq!(
        ipv4(r#""network": "10.3.0.0/16""#),
        range("10.3.1.0", "10.3.255.0", 24)
    );
    assert_eq!(
        ipv6(r#""enableIPv6": true, "ipv6Network": "fc00::/48", "enableIPv4": false"#),
        range("fc00:0:0:1::", "fc00:0:0:ffff::", 64)
    );
    assert_eq!(
        ipv4(
            r#""Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28"#
        ),
        range("10.3.5.0", "10.3.8.0", 28)
    );
}

#[test]
fn the_subnet_length_follows_the_size_of_the_network() {
    for (network, len) in [
        ("10.0.0.0/8", 24),
        ("10.0.0.0/22", 24),
        ("10.0.0.0/23", 25),
        ("10.0.0.0/24", 26),
        ("10.0.0.0/28", 30),
        ("255.0.0.0/8", 24),
        ("0.0.0.0/1", 24),
    ] {
        assert_eq!(
            ipv4(&format!(r#""Network": "{network}""#)).2,
            len,
            "{network}"
        );
    }
    for (network, len) in [
        ("fc00::/62", 64),
        ("fc00::/63", 65),
        ("fc00::/124", 126),
        ("::/1", 64),
    ] {
        let text =
            format!(r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "{network}""#);
        assert_eq!(ipv6(&text).2, len, "{network}");
    }
}

#[test]
fn the_last_network_of_the_address_space_ends_at_its_end() {
    assert_eq!(
        ipv4(r#""Network": "255.0.0.0/8""#),
        range("255.0.1.0", "255.255.255.0", 24)
    );
    assert_eq!(
        ipv6(r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "ff00::/8""#).1,
        "ffff:ffff:ffff:ffff::"
    );
}

#[test]
fn host_bits_of_a_network_are_dropped() {
    let config = parse(&with_vxlan(r#""Network": "10.10.10.0/16""#)).config;
    assert_eq!(
        config.pools.ipv4.unwrap().network.to_string(),
        "10.10.0.0/16"
    );
}

#[test]
fn a_zero_bound_is_an_absent_one() {
    assert_eq!(
        ipv4(r#""Network": "10.3.0.0/16", "SubnetMin": "0.0.0.0", "SubnetMax": "0.0.0.0""#),
        ipv4(r#""Network": "10.3.0.0/16""#)
    );
    let base = r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48""#;
    assert_eq!(
        ipv6(&format!(
            r#"{base}, "IPv6SubnetMin": "::", "IPv6SubnetMax": null"#
        )),
        ipv6(base)
    );
}

#[test]
fn ipv4_errors_have_the_texts_of_flannel() {
    for (members, text) in [
        (
            r#""SubnetLen": 24"#,
            "please define a correct Network parameter in the flannel config",
        ),
        (
            r#""Network": "0.0.0.0/0""#,
            "please define a correct Network parameter in the flannel config",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetLen": 31"#,
            "SubnetLen must be less than /31",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetLen": 300"#,
            "SubnetLen must be less than /31",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetLen": 17"#,
            "network must be able to accommodate at least four subnets",
        ),
        (
            r#""Network": "10.3.0.0/29""#,
            "network is too small. Minimum useful network prefix is /28",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetMin": "10.4.1.0""#,
            "SubnetMin is not in the range of the Network",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetMax": "10.4.1.0""#,
            "SubnetMax is not in the range of the Network",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetMin": "10.3.1.5""#,
            "SubnetMin is not on a SubnetLen boundary: 10.3.1.5",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetMax": "10.3.9.5""#,
            "SubnetMax is not on a SubnetLen boundary: 10.3.9.5",
        ),
        (
            r#""EnableIPv4": false"#,
            "none defined stack; leave EnableIPv4 out of the network config or set EnableIPv6 to true",
        ),
        (
            r#""Network": "10.3.0.0/16", "SubnetMin": "10.3.9.0", "SubnetMax": "10.3.5.0""#,
            "out of subnets: SubnetMin is greater than SubnetMax; exchange them in the network config",
        ),
    ] {
        assert_eq!(error(&with_vxlan(members)), text, "{members}");
    }
}

#[test]
fn ipv6_errors_have_the_texts_of_flannel() {
    for (members, text) in [
        (
            "",
            "please define a correct IPv6Network parameter in the flannel config",
        ),
        (
            r#", "IPv6Network": "fc00::/48", "IPv6SubnetLen": 127"#,
            "SubnetLen must be less than /127",
        ),
        (
            r#", "IPv6Network": "fc00::/48", "IPv6SubnetLen": 49"#,
            "network must be able to accommodate at least four subnets",
        ),
        (
            r#", "IPv6Network": "fc00::/125""#,
            "IPv6Network is too small. Minimum useful network prefix is /124",
        ),
        (
            r#", "IPv6Network": "fc00::/48", "IPv6SubnetMin": "fd00::""#,
            "IPv6SubnetMin is not in the range of the IPv6Network",
        ),
        (
            r#", "IPv6Network": "fc00::/48", "IPv6SubnetMax": "fd00::""#,
            "IPv6SubnetMax is not in the range of the IPv6Network",
        ),
        (
            r#", "IPv6Network": "fc00::/48", "IPv6SubnetMin": "fc00::1""#,
            "IPv6SubnetMin is not on a SubnetLen boundary: fc00::1",
        ),
        (
            r#", "IPv6Network": "fc00::/48", "IPv6SubnetMax": "fc00::1""#,
            "IPv6SubnetMax is not on a SubnetLen boundary: fc00::1",
        ),
    ] {
        let document = with_vxlan(&format!(
            r#""EnableIPv4": false, "EnableIPv6": true{members}"#
        ));
        assert_eq!(error(&document), text, "{members}");
    }
}

#[test]
fn addresses_that_do_not_decode_are_named_with_their_key() {
    for (members, text) in [
        (
            r#""Network": "fc00::/48""#,
            "Network: invalid IPv4 CIDR format: fc00::/48",
        ),
        (
            r#""Network": "10.3.0.0""#,
            "Network: invalid CIDR address: 10.3.0.0",
        ),
        (r#""Network": null"#, "Network: invalid CIDR address: null"),
        (
            r#""SubnetMin": "fc00::""#,
            "SubnetMin: invalid IPv4 address format: fc00::",
        ),
        (
            r#""SubnetMax": "10.3.1.0/24""#,
            "SubnetMax: invalid IP address format: 10.3.1.0/24",
        ),
        (
            r#""SubnetMin": null"#,
            "SubnetMin: invalid IP address format: null",
        ),
        (
            r#""IPv6Network": "10.3.0.0/16""#,
            "IPv6Network: invalid IPv6 CIDR format: 10.3.0.0/16",
        ),
        (
            r#""IPv6SubnetMin": "10.3.0.0""#,
            "IPv6SubnetMin: invalid IPv6 address format: 10.3.0.0",
        ),
    ] {
        assert_eq!(error(&with_vxlan(members)), text, "{members}");
    }
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    for (members, text) in [
        (
            r#""SubnetLen": "24""#,
            r#"SubnetLen must be a whole number from 0, not the string "24""#,
        ),
        (
            r#""EnableIPv6": "true""#,
            r#"EnableIPv6 must be true or false, not the string "true""#,
        ),
        (
            r#""EnableNFTables": 1"#,
            "EnableNFTables must be true or false, not 1",
        ),
    ] {
        assert_eq!(error(&with_vxlan(members)), text, "{members}");
    }
    assert_eq!(
        error(r#"{"Network": "10.3.0.0/16", "Backend": "vxlan"}"#),
        r#"error decoding Backend property of config: Backend must be a JSON object, not the string "vxlan""#
    );
    assert_eq!(
        error(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": 1}}"#),
        "error decoding Backend property of config: Type must be a string, not 1"
    );
}

#[test]
fn keys_and_the_backend_type_match_in_any_case() {
    let config = parse(r#"{"NETWORK": "10.3.0.0/16", "backend": {"TYPE": "VxLAN", "vni": 7}}"#);
    assert_eq!(
        config.config.backend,
        Backend::Vxlan(Vxlan {
            vni: 7,
            ..Vxlan::DEFAULT
        })
    );
}

#[test]
fn vxlan_options_default_as_in_flannel() {
    let expected = Vxlan {
        vni: 1,
        port: None,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
    };
    assert_eq!(vxlan(r#"{"Type": "vxlan"}"#), expected);
    assert_eq!(
        vxlan(r#"{"Type": "vxlan", "Port": 0, "MTU": 0, "VNI": null}"#),
        expected
    );
}

#[test]
fn vxlan_options_are_read() {
    let options = r#"{"Type": "vxlan", "VNI": 42, "Port": 4789, "MTU": 9000, "GBP": true,
                      "Learning": true, "DirectRouting": true, "MacPrefix": "0E-2A"}"#;
    assert_eq!(
        vxlan(options),
        Vxlan {
            vni: 42,
            port: Some(4789),
            mtu: Some(9000),
            gbp: true,
            learning: true,
            direct_routing: true,
        }
    );
}

#[test]
fn vxlan_options_out_of_range_say_the_range() {
    for (option, text) in [
        (
            r#""VNI": 10000000"#,
            "VNI is 10000000, it must be from 0 to 9999999",
        ),
        (r#""VNI": -1"#, "VNI is -1, it must be from 0 to 9999999"),
        (
            r#""Port": 65536"#,
            "Port is 65536, it must be from 0 to 65535",
        ),
        (
            r#""MTU": 50"#,
            "MTU is 50, it must be from 118 to 65535, or 0",
        ),
        (
            r#""DirectRouting": "yes""#,
            r#"DirectRouting must be true or false, not the string "yes""#,
        ),
        (
            r#""GBP": "true""#,
            r#"GBP must be true or false, not the string "true""#,
        ),
    ] {
        let document =
            format!(r#"{{"Network": "10.3.0.0/16", "Backend": {{"Type": "vxlan", {option}}}}}"#);
        assert_eq!(
            error(&document),
            format!("error decoding VXLAN backend config: {text}")
        );
    }
}

#[test]
fn ipv6_narrows_the_ranges_of_vxlan_options() {
    let document = |option: &str| {
        format!(
            r#"{{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {{"Type": "vxlan", {option}}}}}"#
        )
    };
    for (option, text) in [
        (
            r#""VNI": 100000"#,
            "VNI is 100000, it must be from 0 to 99999 with IPv6",
        ),
        (
            r#""MTU": 1349"#,
            "MTU is 1349, it must be from 1350 to 65535 with IPv6, or 0",
        ),
    ] {
        assert_eq!(
            error(&document(option)),
            format!("error decoding VXLAN backend config: {text}")
        );
    }
    parse(&document(r#""VNI": 99999, "MTU": 1350"#));
}

#[test]
fn direct_routing_as_a_string_is_accepted_with_a_warning() {
    let parsed = parse(
        r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "VxLAN", "Directrouting": "true"}}"#,
    );
    let Backend::Vxlan(vxlan) = parsed.config.backend else {
        panic!("{parsed:?}")
    };
    assert!(vxlan.direct_routing);
    assert_eq!(
        parsed.warnings,
        [
            r#"DirectRouting of the network config is the string "true"; it is taken for true, but flannel refuses it: write it without quotes"#
        ]
    );
    let plain =
        parse(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#);
    assert_eq!(plain.config, parsed.config);
    assert!(plain.warnings.is_empty());
}

#[test]
fn host_gw_and_alloc_take_no_options() {
    for (name, backend) in [("host-gw", HostGw.into()), ("alloc", Backend::from(Alloc))] {
        let text = format!(r#"{{"Network": "10.3.0.0/16", "Backend": {{"Type": "{name}"}}}}"#);
        assert_eq!(parse(&text).config.backend, backend);
    }
}

#[test]
fn other_backends_are_refused_with_what_is_supported() {
    for (backend, text) in [
        (
            r#""Backend": {"Type": "IPsec"}"#,
            "backend type ipsec is not supported: use wireguard, which encrypts as well; the Type of \
             the network config's Backend can be: vxlan, host-gw, udp, ipip, wireguard, alloc, extension, \
             aws-vpc, gce",
        ),
        (
            r#""Backend": {"Type": "ali-vpc"}"#,
            "backend type ali-vpc is not supported: use vxlan, or host-gw where the VPC carries it; the Type of \
             the network config's Backend can be: vxlan, host-gw, udp, ipip, wireguard, alloc, extension, \
             aws-vpc, gce",
        ),
        (
            r#""Backend": {"Type": "tencent-vpc"}"#,
            "backend type tencent-vpc is not supported: use vxlan, or host-gw where the VPC carries it; the Type of \
             the network config's Backend can be: vxlan, host-gw, udp, ipip, wireguard, alloc, extension, \
             aws-vpc, gce",
        ),
        (
            r#""Backend": {"Type": "x"}"#,
            "unknown backend type: x (supported: vxlan, host-gw, udp, ipip, wireguard, alloc, extension, \
             aws-vpc, gce)",
        ),
        (
            r#""Backend": {}"#,
            "unknown backend type:  (supported: vxlan, host-gw, udp, ipip, wireguard, alloc, extension, \
             aws-vpc, gce)",
        ),
        (
            r#""Backend": null"#,
            "unknown backend type:  (supported: vxlan, host-gw, udp, ipip, wireguard, alloc, extension, \
             aws-vpc, gce)",
        ),
    ] {
        let document = format!(r#"{{"Network": "10.3.0.0/16", {backend}}}"#);
        assert_eq!(error(&document), text, "{document}");
    }
}

#[test]
fn a_config_without_a_backend_has_udp() {
    let parsed = parse(r#"{"Network": "10.0.0.0/16"}"#);
    assert_eq!(parsed.config.backend, Udp::DEFAULT.into());
    assert_eq!(parsed.warnings, Vec::<String>::new());
    let dual = r#"{"Network": "10.0.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10::/48"}"#;
    assert_eq!(
        error(dual),
        "the udp backend carries IPv4 only: take EnableIPv6 out of the network config, or use vxlan, \
         host-gw or wireguard"
    );
}

#[test]
fn what_is_meant_beyond_doubt_is_accepted_with_a_warning() {
    let plain = parse(
        r#"{"Network": "10.3.0.0/16", "SubnetLen": 25, "Backend": {"Type": "vxlan", "VNI": 1, "MTU": 1400}}"#,
    );
    assert_eq!(plain.warnings, Vec::<String>::new());
    for (text, warnings) in [
        (
            "\u{feff}{\"Network\": \"10.3.0.0/16\", \"SubnetLen\": 25,\r\n \"Backend\": {\"Type\": \
             \"vxlan\", \"VNI\": 1, \"MTU\": 1400}}\r\n",
            &[
                "the network config begins with a byte order mark, which is passed over, but flannel \
               refuses it: write the config without one",
            ][..],
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetLen": 25.0, "Backend": {"Type": "vxlan", "VNI": 1.0, "MTU": 1400.00}}"#,
            &[
                "SubnetLen of the network config is 25.0; it is taken for 25, but flannel refuses it: \
                 write 25",
                "VNI of the network config is 1.0; it is taken for 1, but flannel refuses it: write 1",
                "MTU of the network config is 1400.00; it is taken for 1400, but flannel refuses it: \
                 write 1400",
            ],
        ),
    ] {
        let parsed = parse(text);
        assert_eq!(parsed.config, plain.config, "{text}");
        assert_eq!(parsed.warnings, warnings, "{text}");
    }
}

#[test]
fn a_config_in_quotes_is_named_as_that() {
    let document = r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    let encoded = serde_json::to_string(document).unwrap();
    let quoted = "the network config is in quotes: what should be a JSON object is a text with the \
                  object in it; write the object itself, without the quotes around it";
    assert_eq!(
        error(&encoded),
        format!("{quoted} and the backslashes in it")
    );
    assert_eq!(error(&format!("'{document}'")), quoted);
    assert_eq!(
        error(r#"{"Network": "10.3.0.0/16", "Backend": "{\"Type\": \"vxlan\"}"}"#),
        "error decoding Backend property of config: Backend is in quotes: what should be a JSON \
         object is a text with the object in it; write the object itself, without the quotes around \
         it and the backslashes in it"
    );
}

#[test]
fn no_message_says_its_cause_twice() {
    for document in [
        r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1.5}}"#,
        r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "x"}}"#,
        r#"{"Network": "10.3.0.0/16", "Backend": 1}"#,
        r#"{"Network": "10.3.0.0/29"}"#,
        "{",
    ] {
        let error = NetworkConfig::parse(document.as_bytes()).unwrap_err();
        let alone = error.to_string();
        assert_eq!(crate::output::one_line(&error.into()), alone);
    }
}

#[test]
fn bytes_that_are_not_utf_8_do_not_matter_in_unknown_keys() {
    let document =
        b"{\"\xff\": 1, \"Network\": \"10.3.0.0/16\", \"Backend\": {\"Type\": \"alloc\"}}";
    assert_eq!(
        NetworkConfig::parse(document).unwrap().config.backend,
        Backend::from(Alloc)
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(document: Vec<u8>) {
        let _ = NetworkConfig::parse(&document);
    }

    #[test]
    fn no_values_make_the_parser_panic(
        family in prop::bool::ANY,
        prefix in 0u8..=130,
        address: u128,
        len in prop_oneof![0u64..=130, any::<u64>()],
        min: u128,
        options in ".*",
    ) {
        let (network, bound) = if family {
            (format!("{}/{prefix}", Ipv6Addr::from(address)), Ipv6Addr::from(min).to_string())
        } else {
            (format!("{}/{prefix}", low_bits(address)), low_bits(min).to_string())
        };
        let (v4, v6, key) = if family { (false, true, "IPv6") } else { (true, false, "") };
        let document = format!(
            r#"{{"EnableIPv4": {v4}, "EnableIPv6": {v6}, "{key}Network": "{network}",
                "{key}SubnetLen": {len}, "{key}SubnetMin": "{bound}", "Backend": {options}}}"#
        );
        let _ = NetworkConfig::parse(document.as_bytes());
        let _ = NetworkConfig::parse(document.replace(&options, r#"{"Type": "vxlan"}"#).as_bytes());
    }

    #[test]
    fn a_valid_range_lies_in_its_network(prefix in 1u8..=28, address: u32) {
        let network = Ipv4Network::new(address.into(), prefix).unwrap();
        let pool = parse(&with_vxlan(&format!(r#""Network": "{network}""#))).config.pools.ipv4.unwrap();
        prop_assert!(pool.network.contains(pool.subnet_min));
        prop_assert!(pool.network.contains(pool.subnet_max));
        prop_assert!(pool.subnet_min <= pool.subnet_max);
    }
}
