//! From one module's vocabulary to another's: options and config into what the lease and the packet filter want.

use overlay_common::addr::MacAddr;

use crate::{
    config::{self, NetworkConfig},
    filter,
    lease::LeaseAttrs,
    model::{Backend, LocalNode, Underlay},
};

/// What this node's lease says.
pub fn attrs(backend: &Backend, underlay: &Underlay, vtep_mac: MacAddr) -> LeaseAttrs {
    match backend {
        Backend::Vxlan(vxlan) => LeaseAttrs::vxlan(underlay.public_ip, vxlan.vni, vtep_mac),
        Backend::HostGw => LeaseAttrs::host_gw(underlay.public_ip),
        Backend::Alloc => LeaseAttrs::alloc(underlay.public_ip),
    }
}

/// The packet filter rules wanted.
pub fn filter_settings(
    options: &config::FilterOptions,
    config: &NetworkConfig,
    local: &LocalNode,
) -> filter::Settings {
    filter::Settings {
        mode: if config.nftables {
            filter::Mode::Nftables
        } else {
            filter::Mode::Iptables
        },
        masquerade: if options.ip_masq {
            filter::Masquerade::On {
                fully_random: options.masq_fully_random,
            }
        } else {
            filter::Masquerade::Off
        },
        forward: options.forward_rules,
        keep_pod_source: options.pod_source_keep,
        networks: vec![filter::PodNetwork::v4(local.network, local.subnet)],
    }
}

/// MTU of the pod network: what `FLANNEL_MTU` says.
pub fn pod_mtu(local: &LocalNode) -> u32 {
    match &local.backend {
        Backend::Vxlan(vxlan) => vxlan
            .mtu
            .unwrap_or(local.underlay.mtu)
            .saturating_sub(overlay_common::encap::ENCAP_LEN),
        Backend::HostGw | Backend::Alloc => local.underlay.mtu,
    }
}
