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
mod trusted;

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use overlay_tests::{in_both_families, rules::Flavour, skip};

use self::{
    apart::{direct_and_translated_flows_are_fast, published_ports_are_reached, shared_ports},
    bench::{Bench, Services, in_both_modes},
    endurance::endurance,
    moves::{a_backend_is_replaced, affinity_ends, endpoints_go},
    survey::{check_survey, survey},
    trusted::{older_translations, services_in_trusted_mode},
};

fn all_clients_reach_all_services<A: Services>(flavour: Flavour) -> Result<()> {
    let [fast, off] = in_both_modes(flavour, survey::<A>);
    check_survey(&off);
    ensure!(
        fast == off,
        "with the fast path {fast:#?}\nwithout {off:#?}"
    );
    Ok(())
}

fn all_clients_reach_all_services_with_iptables_rules<A: Services>() -> Result<()> {
    all_clients_reach_all_services::<A>(Flavour::Iptables)
}

fn all_clients_reach_all_services_with_nftables_rules<A: Services>() -> Result<()> {
    all_clients_reach_all_services::<A>(Flavour::Nftables)
}

fn translated_flows_stay_apart<A: Services>(flavour: Flavour) {
    in_both_modes(flavour, |bench: &Bench<'_, A>| {
        direct_and_translated_flows_are_fast(bench)?;
        published_ports_are_reached(bench)?;
        shared_ports(bench)
    });
}

fn flows_that_share_ports_stay_apart_and_services_are_fast_with_iptables_rules<A: Services>() {
    translated_flows_stay_apart::<A>(Flavour::Iptables);
}

fn flows_that_share_ports_stay_apart_and_services_are_fast_with_nftables_rules<A: Services>() {
    translated_flows_stay_apart::<A>(Flavour::Nftables);
}

fn open_connections_survive_changes_of_iptables_rules<A: Services>() {
    in_both_modes(Flavour::Iptables, endurance::<A>);
}

fn open_connections_survive_changes_of_nftables_rules<A: Services>() {
    in_both_modes(Flavour::Nftables, endurance::<A>);
}

/// What is not here on this machine is on the kernels of `cargo xtask test --kernel`.
const NO_IPVS: &str = "this kernel has no IPVS";

fn all_clients_reach_all_services_with_ipvs<A: Services>() {
    if !Flavour::Ipvs.is_available() {
        skip!("{NO_IPVS}");
    }
    all_clients_reach_all_services::<A>(Flavour::Ipvs).unwrap();
}

fn services_are_fast_with_ipvs<A: Services>() {
    if !Flavour::Ipvs.is_available() {
        skip!("{NO_IPVS}");
    }
    // IPVS itself mixes a flow to a service with one to its backend that has the same ports: it gives neither
    // another.
    in_both_modes(Flavour::Ipvs, direct_and_translated_flows_are_fast::<A>);
}

fn open_connections_survive_changes_with_ipvs<A: Services>() {
    if !Flavour::Ipvs.is_available() {
        skip!("{NO_IPVS}");
    }
    in_both_modes(Flavour::Ipvs, endurance::<A>);
}

fn udp_leaves_an_endpoint_that_goes_and_tcp_stays_with_ipvs<A: Services>() {
    if !Flavour::Ipvs.is_available() {
        skip!("{NO_IPVS}");
    }
    in_both_modes(Flavour::Ipvs, endpoints_go::<A>);
}

in_both_families! { addresses:
    all_clients_reach_all_services_with_ipvs,
    services_are_fast_with_ipvs,
    open_connections_survive_changes_with_ipvs,
    udp_leaves_an_endpoint_that_goes_and_tcp_stays_with_ipvs,
    all_clients_reach_all_services_with_iptables_rules,
    all_clients_reach_all_services_with_nftables_rules,
    flows_that_share_ports_stay_apart_and_services_are_fast_with_iptables_rules,
    flows_that_share_ports_stay_apart_and_services_are_fast_with_nftables_rules,
    open_connections_survive_changes_of_iptables_rules,
    open_connections_survive_changes_of_nftables_rules,
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
fn in_trusted_mode_flows_of_a_pair_part_where_a_service_connects_it_with_iptables_rules() {
    services_in_trusted_mode::<Ipv4Addr>(Flavour::Iptables);
}

#[test]
fn in_trusted_mode_ipv6_flows_of_a_pair_part_where_a_service_connects_it_with_nftables_rules() {
    services_in_trusted_mode::<Ipv6Addr>(Flavour::Nftables);
}

#[test]
fn trusted_mode_knows_translations_that_are_older_with_nftables_rules() {
    older_translations::<Ipv4Addr>(Flavour::Nftables);
}

#[test]
fn trusted_mode_knows_ipv6_translations_that_are_older_with_iptables_rules() {
    older_translations::<Ipv6Addr>(Flavour::Iptables);
}

#[test]
fn a_backend_under_the_address_of_a_dead_one_is_served_with_iptables_rules() {
    in_both_modes(Flavour::Iptables, a_backend_is_replaced);
}

#[test]
fn affinity_ends_for_new_connections_alone_with_iptables_rules() {
    in_both_modes(Flavour::Iptables, affinity_ends::<Ipv4Addr>);
}

#[test]
fn ipv6_affinity_ends_for_new_connections_alone_with_nftables_rules() {
    in_both_modes(Flavour::Nftables, affinity_ends::<Ipv6Addr>);
}
