//! What the fuzz targets do with their input. The tests of the workspace include this file and replay
//! the corpus with it.
//!
//! Each function feeds one parser of outside input, and panics if something that holds for every
//! input does not hold.

use std::collections::BTreeMap;

use overlay_agent::{
    config::{NetworkConfig, flags},
    docker_opts,
    filter::{iptables::diff::Listing, writers},
    model::{LeaseAttrs, LeaseKey},
    probe::Packet,
    subnet_env::{Previous, dotenv::Dotenv},
};
use overlay_common::{
    encap::EncapHeader,
    wire::{self, VxlanHeader},
};

/// A parser and how it is fed.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by the name of its file in `fuzz_targets` and of its directory in `corpus`.
pub const TARGETS: [Target; 10] = [
    ("command_line", command_line),
    ("docker_opts", docker_opts),
    ("iptables_listing", iptables_listing),
    ("lease_key", lease_key),
    ("lease_value", lease_value),
    ("network_config", network_config),
    ("nft_notification", nft_notification),
    ("peer_probe", peer_probe),
    ("subnet_env", subnet_env),
    ("vxlan", vxlan),
];

/// A key of etcd below the prefix: who leases which subnet.
pub fn lease_key(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(key) = LeaseKey::parse(&text) {
        let written = key.to_string();
        assert_eq!(
            LeaseKey::parse(&written),
            Some(key),
            "{text:?} → {written:?}"
        );
    }
}

/// What another node asks or answers, or whoever sends to the port.
pub fn peer_probe(input: &[u8]) {
    if let Some(packet) = Packet::decode(input) {
        let written = packet.encode(input.len());
        assert_eq!(written.len(), input.len());
        assert_eq!(Packet::decode(&written), Some(packet));
    }
}

/// A lease record, which any node, or flannel, may have written.
pub fn lease_value(input: &[u8]) {
    if let Ok(attrs) = LeaseAttrs::decode(input) {
        let written = attrs.encode();
        let again = LeaseAttrs::decode(written.as_bytes()).expect("our own record");
        assert_eq!(again.encode(), written);
        assert_eq!(again.vxlan_data(), attrs.vxlan_data());
        assert_eq!(again.vxlan_v6_data(), attrs.vxlan_v6_data());
    }
}

/// The network config of the cluster.
pub fn network_config(input: &[u8]) {
    if let Err(error) = NetworkConfig::parse(input) {
        assert!(!error.to_string().is_empty());
    }
}

/// The subnet file of an earlier start.
pub fn subnet_env(input: &[u8]) {
    let _ = Previous::parse(&String::from_utf8_lossy(input));
}

/// Words of the command line, one a line; after an empty line the environment, as `NAME=value`.
pub fn command_line(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (words, environment) = text.split_once("\n\n").unwrap_or((&text, ""));
    let words: Vec<String> = words.lines().map(str::to_owned).collect();
    let environment: BTreeMap<&str, &str> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let value = |name: &str| environment.get(name).map(|&value| value.to_owned());
    if let Err(error) = flags::parse(&words, value) {
        assert!(!error.to_string().is_empty());
    }
}

/// Words of `mk-docker-opts`, one a line; after an empty line the subnet file.
pub fn docker_opts(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (words, file) = text.split_once("\n\n").unwrap_or((&text, ""));
    let words: Vec<String> = words.lines().map(str::to_owned).collect();
    if let Ok(docker_opts::args::Invocation::Write(args)) = docker_opts::args::parse(&words) {
        let variables = Dotenv::parse(file).variables;
        let _ = docker_opts::text::render(&args, variables);
    }
}

/// What `iptables -S` prints of everybody's rules.
pub fn iptables_listing(input: &[u8]) {
    let listing = Listing::parse(&String::from_utf8_lossy(input));
    let _ = listing.foreign_rules(&[]);
}

/// A datagram of nf_tables' multicast group.
pub fn nft_notification(input: &[u8]) {
    let found = writers(input);
    assert!(found.len() <= input.len() / 16, "{} messages", found.len());
}

/// The payload of a UDP datagram to the tunnel port.
pub fn vxlan(input: &[u8]) {
    if let Ok((header, rest)) = VxlanHeader::parse(input) {
        assert_eq!(rest.len() + size_of::<VxlanHeader>(), input.len());
        assert!(header.vni() < 1 << 24);
    }
    if let Ok((_, rest)) = wire::split::<EncapHeader>(input) {
        assert_eq!(rest.len() + size_of::<EncapHeader>(), input.len());
    }
}
