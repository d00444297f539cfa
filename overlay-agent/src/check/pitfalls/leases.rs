//! What nodes say of themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    check::{facts::Facts, finding::Finding},
    clock::TOLERATED_SECONDS,
};

/// Two nodes with one address: cloned machines, and those of which `--iface` finds the same NAT address.
pub fn duplicates(facts: &Facts) -> Vec<Finding> {
    const ADVICE: &str = "give each node its own address (--iface, --public-ip), and delete the key of the one that \
                          is no more: etcdctl get --prefix <prefix>/subnets";
    let mut subnets: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for overlay in &facts.overlays {
        for route in &overlay.tier.routes {
            if let Some(vtep) = route.vtep {
                subnets
                    .entry(vtep)
                    .or_default()
                    .insert(route.subnet.to_string());
            }
        }
    }
    let twice = subnets.into_iter().filter(|(_, subnets)| subnets.len() > 1);
    let mut findings: Vec<Finding> = twice
        .map(|(vtep, subnets)| {
            let subnets: Vec<String> = subnets.into_iter().collect();
            let subnets = subnets.join(" and ");
            Finding::error(
                "duplicate_public_ip",
                format!("{subnets} are leased with the same address, {vtep}: packets for both go to one node"),
                ADVICE,
            )
        })
        .collect();
    findings.extend(facts.duplicates.iter().map(|duplicate| {
        let subnet = duplicate.subnet;
        let seen = match duplicate.public_ip {
            Some(address) if is_own(facts, address) => {
                format!("{subnet} is leased with {address}, the address of this node: no route is made of it")
            }
            Some(address) => format!("{subnet}, the subnet of this node, is leased with the address {address}"),
            None => format!("somebody else keeps writing the lease of {subnet}, the subnet of this node"),
        };
        Finding::error("duplicate_public_ip", seen, ADVICE)
    }));
    findings
}

/// Leases do not suffer, since the store counts their time by itself; whatever has a date does.
pub fn clock(facts: &Facts) -> Vec<Finding> {
    let Some(ahead) = facts.clock_ahead_seconds else {
        return Vec::new();
    };
    if ahead.abs() <= TOLERATED_SECONDS {
        return Vec::new();
    }
    let (seconds, side) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
    vec![Finding::warning(
        "clock",
        format!(
            "this node's clock is {seconds} s {side} the lease store's: certificates and tokens are taken for expired, or \
             for not yet valid, and the logs of nodes cannot be compared"
        ),
        "timedatectl and chronyc tracking, on this node and on those of the store",
    )]
}

/// Whether tunnel packets of this node come from the address, or the lease that shows it is another one.
fn is_own(facts: &Facts, address: IpAddr) -> bool {
    let mut overlays = facts.overlays.iter();
    overlays.any(|overlay| overlay.vtep == address)
}
