//! Services as kube-proxy makes them, over the real agent: whatever netfilter does to a flow, the
//! fast path changes nothing but the way its packets take.
//!
//! Two nodes with two pods each; the pods `b` serve. Every test runs once per family and form of the
//! rules, in two labs: one with the fast path, one with `--fastpath=off`.

mod apart;
mod bench;
mod endurance;
mod family;
mod moves;
mod survey;

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_tests::rules::Flavour;

use self::{
    apart::{direct_and_service_flows_are_fast, shared_ports},
    bench::{Bench, Family, in_both_modes},
    endurance::endurance,
    moves::endpoints_go,
    survey::{check_survey, survey},
};

fn all_clients_reach_all_services<A: Family>(flavour: Flavour) {
    let [fast, off] = in_both_modes(flavour, survey::<A>);
    check_survey(&off);
    assert_eq!(fast, off);
}

#[test]
fn all_clients_reach_all_services_with_iptables_rules() {
    all_clients_reach_all_services::<Ipv4Addr>(Flavour::Iptables);
}

#[test]
fn all_clients_reach_all_services_with_nftables_rules() {
    all_clients_reach_all_services::<Ipv4Addr>(Flavour::Nftables);
}

fn translated_flows_stay_apart<A: Family>(flavour: Flavour) {
    in_both_modes(flavour, |bench: &Bench<'_, A>| {
        direct_and_service_flows_are_fast(bench)?;
        shared_ports(bench)
    });
}

#[test]
fn flows_that_share_ports_stay_apart_and_services_are_fast_with_iptables_rules() {
    translated_flows_stay_apart::<Ipv4Addr>(Flavour::Iptables);
}

#[test]
fn flows_that_share_ports_stay_apart_and_services_are_fast_with_nftables_rules() {
    translated_flows_stay_apart::<Ipv4Addr>(Flavour::Nftables);
}

#[test]
fn udp_leaves_an_endpoint_that_goes_and_tcp_stays_with_iptables_rules() {
    in_both_modes(Flavour::Iptables, endpoints_go::<Ipv4Addr>);
}

#[test]
fn ipv6_udp_leaves_an_endpoint_that_goes_and_tcp_stays_with_nftables_rules() {
    in_both_modes(Flavour::Nftables, endpoints_go::<Ipv6Addr>);
}

#[test]
fn open_connections_survive_changes_of_iptables_rules() {
    in_both_modes(Flavour::Iptables, endurance::<Ipv4Addr>);
}

#[test]
fn open_connections_survive_changes_of_nftables_rules() {
    in_both_modes(Flavour::Nftables, endurance::<Ipv4Addr>);
}

#[test]
fn ipv6_all_clients_reach_all_services_with_iptables_rules() {
    all_clients_reach_all_services::<Ipv6Addr>(Flavour::Iptables);
}

#[test]
fn ipv6_all_clients_reach_all_services_with_nftables_rules() {
    all_clients_reach_all_services::<Ipv6Addr>(Flavour::Nftables);
}

#[test]
fn ipv6_flows_that_share_ports_stay_apart_and_services_are_fast_with_iptables_rules() {
    translated_flows_stay_apart::<Ipv6Addr>(Flavour::Iptables);
}

#[test]
fn ipv6_flows_that_share_ports_stay_apart_and_services_are_fast_with_nftables_rules() {
    translated_flows_stay_apart::<Ipv6Addr>(Flavour::Nftables);
}

#[test]
fn ipv6_open_connections_survive_changes_of_iptables_rules() {
    in_both_modes(Flavour::Iptables, endurance::<Ipv6Addr>);
}

#[test]
fn ipv6_open_connections_survive_changes_of_nftables_rules() {
    in_both_modes(Flavour::Nftables, endurance::<Ipv6Addr>);
}
