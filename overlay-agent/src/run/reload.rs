//! What a changed network config means for a node that runs: which part of it can be taken over
//! with pods running, and which part needs a new start. Pure.

use crate::{
    config::NetworkConfig,
    membership::Allocation,
    model::{Backend, LeaseKey, VxlanBackend},
};

/// The keys that say which subnets nodes lease.
const RANGE: &str = "SubnetLen, SubnetMin, SubnetMax";

/// A config between the one in force and the one that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// What the node runs with from here on.
    pub config: NetworkConfig,
    /// Keys that differ from before and are in force.
    pub applied: Vec<&'static str>,
    /// Keys that come into force when the daemon is restarted.
    pub postponed: Vec<&'static str>,
}

/// Takes over from `read` what a node with this lease can change while it runs.
pub fn merge(running: &NetworkConfig, read: &NetworkConfig, own: &LeaseKey) -> Merged {
    let mut merged = Merged {
        config: running.clone(),
        applied: Vec::new(),
        postponed: Vec::new(),
    };
    if read.nftables != running.nftables {
        merged.config.nftables = read.nftables;
        merged.applied.push("EnableNFTables");
    }
    let network = |config: &NetworkConfig| config.ipv4.map(|pool| pool.network);
    let network6 = |config: &NetworkConfig| config.ipv6.map(|pool| pool.network);
    if network(read) != network(running) {
        merged.postponed.push("EnableIPv4, Network");
    }
    if network6(read) != network6(running) {
        merged.postponed.push("EnableIPv6, IPv6Network");
    }
    if merged.postponed.is_empty() && (read.ipv4, read.ipv6) != (running.ipv4, running.ipv6) {
        // The range matters when a subnet is leased, so to this node only if it excludes its own.
        if Allocation::of(read).accepts(own) {
            merged.config.ipv4 = read.ipv4;
            merged.config.ipv6 = read.ipv6;
            merged.applied.push(RANGE);
        } else {
            merged.postponed.push(RANGE);
        }
    }
    match (running.backend, read.backend) {
        (Backend::Vxlan(before), Backend::Vxlan(after)) => merge_vxlan(before, after, &mut merged),
        (before, after) if before == after => {}
        _ => merged.postponed.push("Backend.Type"),
    }
    merged
}

/// The device keeps its identity: peers and its own UDP socket know VNI, port and GBP.
fn merge_vxlan(before: VxlanBackend, after: VxlanBackend, merged: &mut Merged) {
    let mut vxlan = before;
    for (key, differs) in [
        ("Backend.VNI", before.vni != after.vni),
        ("Backend.Port", before.port != after.port),
        ("Backend.GBP", before.gbp != after.gbp),
    ] {
        if differs {
            merged.postponed.push(key);
        }
    }
    if before.direct_routing != after.direct_routing {
        vxlan.direct_routing = after.direct_routing;
        merged.applied.push("Backend.DirectRouting");
    }
    if before.mtu != after.mtu {
        vxlan.mtu = after.mtu;
        merged.applied.push("Backend.MTU");
    }
    if before.learning != after.learning {
        vxlan.learning = after.learning;
        merged.applied.push("Backend.Learning");
    }
    merged.config.backend = Backend::Vxlan(vxlan);
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap().config
    }

    fn merged(read: &str) -> Merged {
        let own = LeaseKey::parse("10.5.34.0-24").unwrap();
        merge(&config(RUNNING), &config(read), &own)
    }

    #[test]
    fn what_keeps_device_and_lease_applies_at_once() {
        for (read, applied) in [
            (RUNNING, vec![]),
            (
                r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#,
                vec!["EnableNFTables"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true,"MTU":1400}}"#,
                vec!["Backend.DirectRouting", "Backend.MTU"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.32.0","Backend":{"Type":"vxlan"}}"#,
                vec!["SubnetLen, SubnetMin, SubnetMax"],
            ),
        ] {
            let merged = merged(read);
            assert_eq!(merged.applied, applied, "{read}");
            assert_eq!(merged.postponed, Vec::<&str>::new(), "{read}");
            assert_eq!(merged.config, config(read), "{read}");
        }
    }

    #[test]
    fn what_changes_device_or_lease_waits_for_a_restart() {
        for (read, postponed) in [
            (
                r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#,
                vec!["EnableIPv4, Network"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#,
                vec!["EnableIPv6, IPv6Network"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.64.0","Backend":{"Type":"vxlan"}}"#,
                vec!["SubnetLen, SubnetMin, SubnetMax"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#,
                vec!["Backend.Type"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":4789}}"#,
                vec!["Backend.VNI", "Backend.Port"],
            ),
        ] {
            let merged = merged(read);
            assert_eq!(merged.postponed, postponed, "{read}");
            assert_eq!(merged.config, config(RUNNING), "{read}");
        }
    }
}
