//! From the desired state to map entries: what a family's configuration and nodes must be. Pure.

use std::{collections::BTreeMap, time::Duration};

use overlay_common::{
    addr::MacAddr,
    config::{
        Config, FASTPATH_LEARNING, FASTPATH_OFF, FASTPATH_STRICT, FASTPATH_TRUSTED, TUNNEL_VXLAN,
    },
    encap::EncapParams,
    node::{NODE_DIRECT, NODE_VALID, NODE_ZERO_CHECKSUM, Node},
};

use crate::{
    config::Fastpath,
    datapath::host::HostFacts,
    model::{Desired, Direct, Family, LocalNode, Peer, TunnelKind, V4},
};

impl Fastpath {
    /// The name used by `--fastpath` and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Strict => "strict",
            Self::Trusted => "trusted",
        }
    }

    /// What there is of it on this node. On an underlay without Ethernet headers nothing could arrive, and one direction
    /// alone would not be fast.
    #[must_use]
    pub fn of<F: Family>(self, local: &LocalNode<F>) -> Self {
        if local.forwarding.may_be_fast && local.underlay.ethernet {
            self
        } else {
            Self::Off
        }
    }

    /// The name of what a `Config::fastpath` value stands for.
    pub const fn name_of_config(value: u32) -> &'static str {
        match value {
            FASTPATH_OFF => Self::Off.name(),
            FASTPATH_STRICT => Self::Strict.name(),
            FASTPATH_TRUSTED => Self::Trusted.name(),
            FASTPATH_LEARNING => "learning",
            _ => "unknown",
        }
    }

    const fn to_config(self) -> u32 {
        match self {
            Self::Off => FASTPATH_OFF,
            Self::Strict => FASTPATH_STRICT,
            Self::Trusted => FASTPATH_TRUSTED,
        }
    }
}

/// The kernel's `flannel.<VNI>`, or the udp backend's device, as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalVtep {
    pub ifindex: u32,
    pub mac: MacAddr,
}

/// What the maps must say, apart from stamp key and generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<F: Family = V4> {
    pub config: Config<F>,
    /// The entry of each peer tier 1 can serve.
    pub nodes: BTreeMap<F::Network, Node<F>>,
    /// Peers that only the kernel tier can serve, if any does.
    pub unusable: Vec<F::Network>,
}

impl<F: Family> Wanted<F> {
    /// Of a family that this node does not serve.
    pub fn nothing() -> Self {
        Self {
            config: Config::default(),
            nodes: BTreeMap::new(),
            unusable: Vec::new(),
        }
    }
}

pub fn wanted<F: Family>(
    desired: &Desired<F>,
    vtep: Option<LocalVtep>,
    facts: &HostFacts<F>,
    fastpath: Fastpath,
) -> Wanted<F> {
    of_peers(desired, desired.peers.values(), vtep, facts, fastpath)
}

/// As if these were all peers.
pub fn of_peers<'a, F: Family>(
    desired: &Desired<F>,
    peers: impl Iterator<Item = &'a Peer<F>>,
    vtep: Option<LocalVtep>,
    facts: &HostFacts<F>,
    fastpath: Fastpath,
) -> Wanted<F> {
    let config = config(&desired.local, vtep, facts, fastpath);
    let mut unusable = Vec::new();
    let nodes = peers.filter_map(|peer| {
        let node = node(&desired.local, peer, config.vtep_mac, facts);
        if node.is_none() {
            unusable.push(peer.subnet);
        }
        Some((network_of::<F>(peer.subnet), node?))
    });
    let nodes = nodes.collect();
    Wanted {
        config,
        nodes,
        unusable,
    }
}

fn config<F: Family>(
    local: &LocalNode<F>,
    vtep: Option<LocalVtep>,
    facts: &HostFacts<F>,
    fastpath: Fastpath,
) -> Config<F> {
    let tunnel = local.forwarding.tunnel;
    let kind = tunnel.map(|tunnel| tunnel.kind);
    // The forwarder of the udp backend takes packets with a checksum that is still to be computed for what they
    // say, and does not know segments that are still to be cut.
    let is_complete = kind != Some(TunnelKind::Udp) || facts.sums;
    let fastpath = if is_complete {
        fastpath.of(local)
    } else {
        Fastpath::Off
    };
    let [_, vni @ ..] = kind.map_or(0, TunnelKind::vni).to_be_bytes();
    let (first, last) = facts.local_port_range;
    Config {
        tcp_permit_ns: nanoseconds(facts.permits.tcp),
        udp_permit_ns: nanoseconds(facts.permits.udp),
        icmp_permit_ns: nanoseconds(facts.permits.icmp),
        sctp_permit_ns: nanoseconds(facts.permits.sctp),
        fastpath: fastpath.to_config(),
        vtep: local.underlay.address.into(),
        network: F::first(local.network).into(),
        network_mask: F::mask(local.network).into(),
        subnet: F::first(local.subnet).into(),
        subnet_mask: F::mask(local.subnet).into(),
        vtep_mac: vtep.map_or(local.vtep_mac, |vtep| vtep.mac),
        vxlan_port: tunnel.map_or(0, |tunnel| tunnel.port).to_be_bytes(),
        vni,
        tunnel: kind.map_or(TUNNEL_VXLAN, TunnelKind::of_config),
        source_port_min: first,
        source_port_span: last.saturating_sub(first),
        vtep_ifindex: vtep.map_or(0, |vtep| vtep.ifindex),
        pod_mtu: local.pod_mtu(),
        ..Config::default()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The entry for `peer`; `None` where the programs could not tell its packets apart or where the
/// lease makes no sense. An old lease of this very node is such a case.
fn node<F: Family>(
    local: &LocalNode<F>,
    peer: &Peer<F>,
    vtep_mac: MacAddr,
    facts: &HostFacts<F>,
) -> Option<Node<F>> {
    let address = peer.public_ip;
    let is_self = address == local.underlay.address || address == local.underlay.public_ip;
    let is_possible = F::is_host(address) && !F::overlap(peer.subnet, local.subnet);
    if is_self || !is_possible || !local.forwarding.is_any() {
        return None;
    }
    let mut flags = NODE_VALID;
    let end = peer.vxlan;
    if end.is_some_and(|end| end.zero_checksum) {
        flags |= NODE_ZERO_CHECKSUM;
    }
    if local.forwarding.direct != Direct::Never {
        flags |= NODE_DIRECT;
    }
    let encap = match local.forwarding.tunnel {
        Some(tunnel) => {
            let params = EncapParams {
                local: local.underlay.address.into(),
                remote: address.into(),
                vni: tunnel.kind.vni(),
                port: tunnel.port,
                ttl: facts.ttl,
                inner_src: vtep_mac,
                inner_dst: end.map_or(MacAddr::ZERO, |end| end.mac),
            };
            match tunnel.kind {
                TunnelKind::Udp => {
                    // The forwarder does not serve it.
                    if F::contains(peer.subnet, local.underlay.address)
                        || F::contains(peer.subnet, address)
                    {
                        return None;
                    }
                    F::datagram(&params)
                }
                TunnelKind::Vxlan { .. } => {
                    if params.inner_dst.is_zero() || params.inner_dst.is_multicast() {
                        return None;
                    }
                    F::encap(&params)
                }
            }
        }
        None => F::Encap::default(),
    };
    let subnet = network_of::<F>(peer.subnet);
    Some(Node {
        flags,
        vtep: address.into(),
        ipv4_sum: F::encap_sum(&encap),
        subnet: F::first(subnet).into(),
        vtep_mac: end.map_or(MacAddr::ZERO, |end| end.mac),
        prefix_len: F::prefix(subnet),
        encap,
        route_mtu: facts
            .route_mtus
            .get(&address)
            .map_or(0, |&mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        ..Node::default()
    })
}

/// The subnet with its host bits cleared.
pub fn network_of<F: Family>(subnet: F::Network) -> F::Network {
    F::with_prefix(F::first(subnet), F::prefix(subnet)).unwrap_or(subnet)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnetwork::Ipv4Network;
    use overlay_common::config::TUNNEL_UDP;

    use super::*;
    use crate::{
        backend::{Alloc, HostGw, Kind, Udp, Vxlan},
        datapath::host::PermitTimes,
        model::{Underlay, VxlanEnd},
    };

    const FACTS: HostFacts = HostFacts {
        ttl: 64,
        local_port_range: (32_768, 60_999),
        route_mtus: BTreeMap::new(),
        permits: PermitTimes::LONGEST,
        sums: false,
    };
    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 7]);

    fn vxlan(direct_routing: bool) -> Vxlan {
        Vxlan {
            direct_routing,
            ..Vxlan::DEFAULT
        }
    }

    fn desired(backend: &impl Kind, peers: &[(&str, [u8; 4], MacAddr)]) -> Desired {
        let peers = peers.iter().map(|&(subnet, public_ip, vtep_mac)| {
            let subnet: Ipv4Network = subnet.parse().unwrap();
            let end = VxlanEnd::new(vtep_mac);
            (subnet, Vxlan::peer_at::<V4>(subnet, public_ip.into(), end))
        });
        Desired {
            local: LocalNode {
                network: "10.1.0.0/16".parse().unwrap(),
                subnet: "10.1.9.0/24".parse().unwrap(),
                underlay: Underlay {
                    ifindex: 3,
                    name: "eth0".into(),
                    mtu: 1500,
                    hardware: true,
                    ethernet: true,
                    address: Ipv4Addr::new(192, 168, 0, 9),
                    public_ip: Ipv4Addr::new(203, 0, 113, 9),
                },
                forwarding: backend.forwarding::<V4>(),
                device: None,
                vtep_mac: MAC,
                lease_data: None,
            },
            peers: peers.collect(),
        }
    }

    fn build(desired: &Desired) -> Wanted {
        wanted(desired, None, &FACTS, Fastpath::Strict)
    }

    #[test]
    fn a_vxlan_peer_gets_prebuilt_headers_with_the_sum_of_its_ip_header() {
        let peer = MacAddr::new([2, 0, 0, 0, 0, 1]);
        let wanted = build(&desired(
            &vxlan(false),
            &[("10.1.1.0/24", [192, 168, 0, 1], peer)],
        ));
        let node = wanted.nodes[&"10.1.1.0/24".parse().unwrap()];
        assert_eq!(node.flags, NODE_VALID);
        assert_eq!(node.encap.ipv4.src.octets, [192, 168, 0, 9]);
        assert_eq!(node.encap.ipv4.dst.octets, [192, 168, 0, 1]);
        assert_eq!(node.encap.udp.dst_port, 8472u16.to_be_bytes());
        assert_eq!(
            (node.encap.inner_eth.src, node.encap.inner_eth.dst),
            (MAC, peer)
        );
        assert_eq!(node.ipv4_sum, node.encap.ipv4_sum());
        assert_eq!(wanted.config.pod_mtu, 1450);
        assert_eq!(
            (
                wanted.config.source_port_min,
                wanted.config.source_port_span
            ),
            (32_768, 28_231)
        );
        assert_eq!(wanted.config.vni, [0, 0, 1]);
    }

    #[test]
    fn the_mtu_of_the_route_to_a_peer_goes_with_its_node() {
        let desired = desired(
            &vxlan(false),
            &[
                ("10.1.1.0/24", [192, 168, 0, 1], MAC),
                ("10.1.2.0/24", [192, 168, 0, 2], MAC),
            ],
        );
        let facts = HostFacts {
            route_mtus: [(Ipv4Addr::new(192, 168, 0, 1), 1400)].into(),
            ..FACTS
        };
        let wanted = wanted(&desired, None, &facts, Fastpath::Strict);
        let mtus: Vec<_> = wanted.nodes.values().map(|node| node.route_mtu).collect();
        assert_eq!(mtus, [1400, 0]);
    }

    #[test]
    fn direct_routing_and_host_gw_mark_peers_direct() {
        let peers = [("10.1.1.0/24", [192, 168, 0, 1], MAC)];
        for desired in [desired(&vxlan(true), &peers), desired(&HostGw, &peers)] {
            let wanted = build(&desired);
            assert!(
                wanted
                    .nodes
                    .values()
                    .all(|node| node.flags == NODE_VALID | NODE_DIRECT)
            );
        }
    }

    #[test]
    fn leases_that_make_no_sense_are_left_to_the_kernel() {
        let bad = [
            ("10.1.1.0/24", [192, 168, 0, 9], MAC),
            ("10.1.2.0/24", [203, 0, 113, 9], MAC),
            ("10.1.3.0/24", [0, 0, 0, 0], MAC),
            ("10.1.4.0/24", [224, 0, 0, 1], MAC),
            ("10.1.5.0/24", [192, 168, 0, 5], MacAddr::ZERO),
            ("10.1.9.128/25", [192, 168, 0, 6], MAC),
        ];
        let wanted = build(&desired(&vxlan(false), &bad));
        assert_eq!(wanted.nodes, BTreeMap::new());
        assert_eq!(wanted.unusable.len(), bad.len());
    }

    #[test]
    fn a_peer_of_the_udp_backend_gets_the_headers_of_a_datagram_and_needs_no_mac() {
        let peers = [("10.1.1.0/24", [192, 168, 0, 1], MacAddr::ZERO)];
        let wanted = build(&desired(&Udp::DEFAULT, &peers));
        let node = wanted.nodes[&"10.1.1.0/24".parse().unwrap()];
        let port = 8285u16.to_be_bytes();
        assert_eq!(node.encap.udp.src_port, port);
        assert_eq!(node.encap.udp.dst_port, port);
        assert_eq!(node.encap.vxlan, Node::<V4>::default().encap.vxlan);
        assert_eq!(node.ipv4_sum, node.encap.ipv4_sum());
        let config = wanted.config;
        assert_eq!((config.tunnel, config.vxlan_port), (TUNNEL_UDP, port));
        assert_eq!(config.pod_mtu, 1472);
    }

    #[test]
    fn a_udp_peer_whose_subnet_has_the_tunnels_own_ends_is_left_to_the_forwarder() {
        let bad = [("10.1.1.0/24", [10, 1, 1, 7], MacAddr::ZERO)];
        let wanted = build(&desired(&Udp::DEFAULT, &bad));
        assert_eq!((wanted.nodes.len(), wanted.unusable.len()), (0, 1));
    }

    #[test]
    fn datagrams_are_fast_only_where_they_leave_with_their_checksums() {
        for (sums, fast) in [(true, FASTPATH_STRICT), (false, FASTPATH_OFF)] {
            let facts = HostFacts { sums, ..FACTS };
            let udp = desired(&Udp::DEFAULT, &[]);
            let config = wanted(&udp, None, &facts, Fastpath::Strict).config;
            assert_eq!(config.fastpath, fast);
            let vxlan = desired(&vxlan(false), &[]);
            let config = wanted(&vxlan, None, &facts, Fastpath::Strict).config;
            assert_eq!(config.fastpath, FASTPATH_STRICT);
        }
    }

    #[test]
    fn the_fast_path_stays_off_where_it_cannot_be_right() {
        let gbp = Vxlan {
            gbp: true,
            ..Vxlan::DEFAULT
        };
        for desired in [desired(&gbp, &[]), desired(&Alloc, &[])] {
            assert_eq!(build(&desired).config.fastpath, FASTPATH_OFF);
        }
    }
}
