//! What a changed network config means for a node that runs: which part of it can be taken over
//! with pods running, and which part needs a new start. Pure.

use crate::{
    backend::ChangedKeys,
    config::NetworkConfig,
    model::{LeaseKey, PerFamily, each_family},
};

/// The keys that say which subnets nodes lease.
const RANGE: &str = "SubnetLen, SubnetMin, SubnetMax";

/// A config between the one in force and the one that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// What the node runs with from here on.
    pub config: NetworkConfig,
    /// What differs from before.
    pub keys: ChangedKeys,
}

/// Takes over from `read` what a node with this lease can change while it runs.
pub fn merge(running: &NetworkConfig, read: &NetworkConfig, own: &LeaseKey) -> Merged {
    let mut merged = Merged {
        config: running.clone(),
        keys: ChangedKeys::default(),
    };
    if read.nftables != running.nftables {
        merged.config.nftables = read.nftables;
        merged.keys.applied.push("EnableNFTables");
    }
    let networks = PerFamily {
        ipv4: "EnableIPv4, Network",
        ipv6: "EnableIPv6, IPv6Network",
    };
    let pools = running.pools.zip(read.pools).zip(networks);
    each_family!(pools, ((running, read), keys) => {
        if running.map(|pool| pool.network) != read.map(|pool| pool.network) {
            merged.keys.postponed.push(keys);
        }
    });
    if merged.keys.postponed.is_empty() && read.pools != running.pools {
        // The range matters when a subnet is leased, so to this node only if it excludes its own.
        if read.pools.accepts(own) {
            merged.config.pools = read.pools;
            merged.keys.applied.push(RANGE);
        } else {
            merged.keys.postponed.push(RANGE);
        }
    }
    merged.config.backend = running.backend.reload(&read.backend, &mut merged.keys);
    merged
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
            assert_eq!(merged.keys.applied, applied, "{read}");
            assert_eq!(merged.keys.postponed, Vec::<&str>::new(), "{read}");
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
            assert_eq!(merged.keys.postponed, postponed, "{read}");
            assert_eq!(merged.config, config(RUNNING), "{read}");
        }
    }
}
