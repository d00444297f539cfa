//! What the maps hold when a program runs: a small cluster, of which a test changes what it is
//! about. The same one in both address families, each with its [addresses](Cluster).
//!
//! | index | way to the node |
//! |---|---|
//! | 1 | tunnel |
//! | 2 | direct |
//! | 3 | tunnel: direct is allowed, but a router is between |
//! | 4 | tunnel; no neighbour answers for it |

mod ipv4;
mod ipv6;

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable as _;
use overlay_common::{
    addr::{Address as _, MacAddr},
    config::{Config, FASTPATH_STRICT},
    encap::EncapParams,
    family::V4,
    flow::{Flow, FlowKey, FlowWords},
    maps::FamilyMaps,
    node::{Gateway, Leaving, MODE_DIRECT, NODE_DIRECT, Nexthop, Node, Peer, PodKey, PodPort},
    route::RouteEntry,
    short::{Short, ShortImage, checksum},
    slow::Slow,
    stamp::{Header, stamp},
};

use super::{
    node::{GATEWAY_MAC, Interfaces, POD_VETH_MTU, UNDERLAY_MAC, neighbour_mac},
    packet::{ETH_LEN, Outer, Packet, Transport, Wire, with_macs},
};

pub const VNI: u32 = 0x00a1_b2c3;
pub const VXLAN_PORT: u16 = 8472;
/// TTL of outer headers.
pub const OUTER_TTL: u8 = 64;
pub const VTEP_MAC: MacAddr = MacAddr::new([0x02, 0xee, 0, 0, 0, 1]);
pub const POD_MAC: MacAddr = MacAddr::new([0x02, 0xdd, 0, 0, 0, 10]);
/// UDP source port of the tunnel packets of a granted flow.
pub const SOURCE_PORT: u16 = 0xabcd;
pub const GENERATION: u32 = 7;
/// How often the way to any node became another.
pub const PATH_CHANGES: u32 = 3;
/// What the stamps of the tests' packets are of: their headers behind the host's own hop.
pub const HEADER: Header = Header { tos: 0, ttl: 63 };
/// `tc_index` of packets that passed unchanged to the vxlan device.
pub const LEAVING: u16 = 0x4f57;
/// `tc_index` of packets by which a node may get the short way.
pub const OPENING: u16 = 0x4f58;

/// The cluster in one address family.
pub trait Cluster: Wire {
    const MAPS: FamilyMaps;
    /// Bytes that a tunnel adds to a packet.
    const OVERHEAD: u16;
    /// Node flags without which no tunnel packet goes to a node.
    const NODE_FLAGS: u32;

    const NETWORK: Self::Octets;
    const NETWORK_MASK: Self::Octets;
    const SUBNET_MASK: Self::Octets;
    const SUBNET_LEN: u8;

    /// This node's VTEP.
    const VTEP: Self::Octets;
    /// A pod of this node, and another one.
    const POD: Self::Octets;
    const OTHER_POD: Self::Octets;
    /// The bridge, as pods know it.
    const GATEWAY: Self::Octets;
    /// The group of all hosts, and one that hosts have to join.
    const ALL_HOSTS: Self::Octets;
    const GROUP: Self::Octets;
    /// An address on the underlay that is no node's.
    const STRANGER: Self::Octets;
    /// An address far away, and one of another private network.
    const INTERNET: Self::Octets;
    const ELSEWHERE: Self::Octets;
    /// An address of the pod network in a subnet that nobody leases.
    const UNLEASED: Self::Octets;

    const TUNNELLED: Remote<Self>;
    const DIRECT: Remote<Self>;
    const ROUTED: Remote<Self>;
    const SILENT: Remote<Self>;
    /// This node, as the others see it.
    const HERE: Remote<Self>;

    /// MTU of the pod network.
    const POD_MTU: u16 = 1500 - Self::OVERHEAD;

    /// The finished headers before `inner`, an IP packet.
    fn finish(encap: Self::Encap, inner: &[u8], source_port: u16) -> Vec<u8>;
}

/// A node other than this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote<F: Wire = V4> {
    pub index: u32,
    pub vtep: F::Octets,
    pub vtep_mac: MacAddr,
    pub subnet: F::Octets,
    /// A pod there.
    pub pod: F::Octets,
    /// How the underlay reaches it.
    pub mode: u8,
    /// The node may be reached directly.
    may_be_direct: bool,
    /// The neighbour that packets to it are sent to.
    pub neighbour: MacAddr,
}

/// Indexes of nodes are below this.
pub const NODES: u32 = 5;

impl<F: Cluster> Remote<F> {
    /// The template of the headers of tunnel packets to it.
    fn encap(&self) -> F::Encap {
        F::encap(&EncapParams {
            local: F::be(F::VTEP),
            remote: F::be(self.vtep),
            vni: VNI,
            port: VXLAN_PORT,
            ttl: OUTER_TTL,
            inner_src: VTEP_MAC,
            inner_dst: self.vtep_mac,
        })
    }

    /// A packet from this node's pod to the one there, as the pod sends it.
    pub fn from_pod(&self, transport: Transport) -> Packet<F> {
        Packet::new(F::POD, self.pod, transport).macs(GATEWAY_MAC, POD_MAC)
    }

    /// `packet`, from this node's pod to the one there, with the MAC addresses that the kernel gives
    /// it on its last hop.
    #[must_use]
    pub fn addressed(&self, packet: &Packet<F>) -> Packet<F> {
        let (to, from) = if self.mode == MODE_DIRECT {
            (self.neighbour, UNDERLAY_MAC)
        } else {
            (self.vtep_mac, VTEP_MAC)
        };
        packet.clone().macs(to, from)
    }

    /// The same behind that hop, as the kernel hands it to the device.
    #[must_use]
    pub fn leaving(&self, packet: &Packet<F>) -> Packet<F> {
        self.addressed(packet).with(|p| p.ttl -= 1)
    }

    /// A packet from the pod there to this node's, as the sending node puts it into a tunnel
    /// packet, or sends it directly.
    pub fn to_pod(&self, transport: Transport) -> Packet<F> {
        let packet = Packet::new(self.pod, F::POD, transport);
        if self.mode == MODE_DIRECT {
            packet.macs(UNDERLAY_MAC, self.neighbour)
        } else {
            packet.macs(VTEP_MAC, self.vtep_mac)
        }
    }

    /// The headers of tunnel packets from there.
    pub fn outer(&self) -> Outer<F> {
        Outer {
            eth_dst: UNDERLAY_MAC,
            eth_src: self.neighbour,
            src: self.vtep.into(),
            dst: F::VTEP.into(),
            tos: 0,
            ttl: OUTER_TTL - 1,
            ip: F::extras(),
            src_port: 45_678,
            dst_port: VXLAN_PORT,
            checksum: false,
            vxlan_flags: 0x08,
            vni: VNI,
        }
    }

    /// The headers of tunnel packets that the kernel sends there.
    pub fn sent(&self, src_port: u16) -> Outer<F> {
        Outer {
            eth_dst: self.neighbour,
            eth_src: UNDERLAY_MAC,
            src: F::VTEP.into(),
            dst: self.vtep.into(),
            ttl: OUTER_TTL,
            src_port,
            checksum: true,
            ..self.outer()
        }
    }

    /// What `frame` from a pod becomes on the underlay: one hop further, in a tunnel packet to
    /// there.
    pub fn encapsulated(&self, frame: &[u8], source_port: u16) -> Vec<u8> {
        let inner = &F::hop(frame)[ETH_LEN..];
        let headers = F::finish(self.encap(), inner, source_port);
        [
            &self.neighbour.octets[..],
            &UNDERLAY_MAC.octets,
            &F::ETHERTYPE,
            &headers,
            inner,
        ]
        .concat()
    }

    /// What `frame` from a pod becomes on the underlay without a tunnel.
    pub fn routed(&self, frame: &[u8]) -> Vec<u8> {
        with_macs(&F::hop(frame), self.neighbour, UNDERLAY_MAC)
    }

    fn node(&self) -> Node<F> {
        let encap = self.encap();
        let direct = if self.may_be_direct { NODE_DIRECT } else { 0 };
        Node {
            flags: F::NODE_FLAGS | direct,
            vtep: F::be(self.vtep),
            ipv4_sum: F::encap_sum(&encap),
            subnet: F::be(self.subnet),
            vtep_mac: self.vtep_mac,
            prefix_len: F::SUBNET_LEN,
            encap,
            ..Node::default()
        }
    }

    /// Its index, as an entry holds it.
    pub fn node_index(&self) -> u16 {
        u16::try_from(self.index).expect("a small index")
    }

    /// What an entry remembers of the way to it.
    pub fn way(&self, interfaces: &Interfaces) -> Flow {
        Flow {
            underlay_ifindex: interfaces.underlay,
            path_changes: PATH_CHANGES,
            next_hop_mac: self.neighbour,
            path_mtu: if self.mode == MODE_DIRECT {
                1500
            } else {
                F::POD_MTU
            },
            underlay_mac: UNDERLAY_MAC,
            egress_mode: self.mode,
            egress_ttl: HEADER.ttl,
            vtep: F::be(self.vtep).tag(),
            ..Flow::default()
        }
    }

    fn route(&self) -> ((F::Octets, u8), RouteEntry) {
        let route = RouteEntry {
            node: self.index,
            ..RouteEntry::default()
        };
        ((self.subnet, F::SUBNET_LEN), route)
    }

    fn peer(&self) -> (F::Be, Peer) {
        (F::be(self.vtep), Peer { node: self.index })
    }
}

/// What is noted of a node to which nobody has learned a way.
fn nexthop() -> Nexthop {
    Nexthop {
        path_changes: PATH_CHANGES,
        ..Nexthop::default()
    }
}

/// What the pod gets of `frame`, the bare packet.
pub fn delivered<F: Wire>(frame: &[u8]) -> Vec<u8> {
    with_macs(&F::hop(frame), POD_MAC, GATEWAY_MAC)
}

/// The maps' contents, but for the counters.
#[derive(Clone, Debug, PartialEq)]
pub struct Fixture<F: Wire = V4> {
    pub interfaces: Interfaces,
    pub config: Config<F>,
    pub nodes: BTreeMap<u32, Node<F>>,
    pub nexthops: BTreeMap<u32, Nexthop>,
    pub routes: BTreeMap<(F::Octets, u8), RouteEntry>,
    pub peers: BTreeMap<F::Be, Peer>,
    pub gateways: BTreeMap<u32, Gateway>,
    pub pods: BTreeMap<PodKey, PodPort>,
    pub flows: BTreeMap<FlowKey<F>, Flow>,
    pub slow: Slow,
    /// Pairs of pods that a translation connects.
    pub translated: BTreeSet<FlowKey<F>>,
    /// The short way to and from nodes.
    pub short: BTreeMap<u32, Short>,
}

impl<F: Cluster> Fixture<F> {
    /// Gives the node the short way, in both directions. `change` is made before it is sealed.
    pub fn open(&mut self, remote: &Remote<F>, change: impl FnOnce(&mut Short)) -> &mut Short {
        let way = remote.way(&self.interfaces);
        let mut short = Short {
            egress_until: u64::MAX,
            generation: self.config.generation,
            underlay_ifindex: way.underlay_ifindex,
            next_hop_mac: way.next_hop_mac,
            mtu: way.path_mtu,
            underlay_mac: way.underlay_mac,
            vtep: way.vtep,
            path_changes: way.path_changes,
            ..Short::default()
        };
        change(&mut short);
        let [checked @ .., _, _, _]: ShortImage = bytemuck::cast(short);
        short.check = checksum(&checked);
        short.ingress_until = u64::MAX;
        let vtep = u64::from(u32::from_ne_bytes(way.vtep));
        let owner = vtep | u64::from(self.config.generation) << 32;
        short.ingress_owner = owner ^ short.ingress_until;
        let entry = self.short.entry(remote.index).or_default();
        *entry = short;
        entry
    }

    /// The pod's frames have been seen on this interface.
    pub fn seen_at(&mut self, ifindex: u32) {
        for port in self.pods.values_mut() {
            port.ifindex = ifindex;
        }
    }

    /// The cluster without a flow.
    pub fn new(interfaces: Interfaces) -> Self {
        let gateway = Gateway {
            mac: GATEWAY_MAC,
            ..Gateway::default()
        };
        let [_, a, b, c] = VNI.to_be_bytes();
        let remotes = [F::TUNNELLED, F::DIRECT, F::ROUTED, F::SILENT];
        Self {
            interfaces,
            config: Config {
                stamp_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
                tcp_permit_ns: 15_000_000_000,
                udp_permit_ns: 15_000_000_000,
                icmp_permit_ns: 15_000_000_000,
                sctp_permit_ns: 15_000_000_000,
                generation: GENERATION,
                fastpath: FASTPATH_STRICT,
                vtep: F::be(F::VTEP),
                network: F::be(F::NETWORK),
                network_mask: F::be(F::NETWORK_MASK),
                subnet: F::be(F::HERE.subnet),
                subnet_mask: F::be(F::SUBNET_MASK),
                vtep_mac: VTEP_MAC,
                vxlan_port: VXLAN_PORT.to_be_bytes(),
                vni: [a, b, c],
                source_port_min: 32_768,
                source_port_span: 60_999 - 32_768,
                vtep_ifindex: interfaces.tunnel,
                pod_mtu: F::POD_MTU.into(),
                ..Config::default()
            },
            nodes: remotes.map(|remote| (remote.index, remote.node())).into(),
            nexthops: remotes.map(|remote| (remote.index, nexthop())).into(),
            routes: remotes.map(|remote| remote.route()).into(),
            peers: remotes.map(|remote| remote.peer()).into(),
            gateways: [(interfaces.gateway, gateway)].into(),
            pods: [(
                PodKey {
                    mac: POD_MAC,
                    ..PodKey::default()
                },
                PodPort {
                    ifindex: interfaces.pod,
                },
            )]
            .into(),
            flows: BTreeMap::new(),
            slow: Slow::zeroed(),
            translated: BTreeSet::new(),
            short: BTreeMap::new(),
        }
    }

    /// What the maps of [`Cluster::TUNNELLED`] hold, whose only other node is [`Cluster::HERE`].
    pub fn far_end(interfaces: Interfaces) -> Self {
        let near = Self::new(interfaces);
        let config = Config {
            vtep: F::be(F::TUNNELLED.vtep),
            vtep_mac: F::TUNNELLED.vtep_mac,
            subnet: F::be(F::TUNNELLED.subnet),
            ..near.config
        };
        let here = F::HERE;
        Self {
            config,
            nodes: [(here.index, here.node())].into(),
            nexthops: [(here.index, nexthop())].into(),
            routes: [here.route()].into(),
            peers: [here.peer()].into(),
            ..near
        }
    }

    /// What a packet of the flow `key` carries as its hash if it was not changed on its way.
    pub fn stamp(&self, key: FlowKey<F>) -> u32 {
        self.stamp_of(key, HEADER)
    }

    /// The same of a packet with this header.
    pub fn stamp_of(&self, key: FlowKey<F>, header: Header) -> u32 {
        let config = &self.config;
        stamp(key.into(), header, &config.stamp_key, config.generation)
    }

    /// What is noted of a packet of the flow `key` that passed unchanged to the vxlan device.
    pub fn noted(&self, key: FlowKey<F>) -> Leaving {
        Leaving {
            flow: FlowWords::from(key).id(),
            gateway_mac: GATEWAY_MAC,
            generation: self.config.generation,
            ..Leaving::default()
        }
    }

    /// Gives the flow `key` live permits in both directions, with a pod on `remote`. Returns the
    /// entry for changes.
    pub fn grant(&mut self, key: FlowKey<F>, remote: &Remote<F>) -> &mut Flow {
        let flow = Flow {
            id: FlowWords::from(key).id(),
            egress_until: u64::MAX,
            ingress_until: u64::MAX,
            generation: self.config.generation,
            node: remote.node_index(),
            gateway_mac: GATEWAY_MAC,
            source_port: SOURCE_PORT.to_be_bytes(),
            pod_mac: POD_MAC,
            pod_mtu: POD_VETH_MTU,
            deliver_mac: GATEWAY_MAC,
            ingress_mode: remote.mode,
            ingress_ttl: HEADER.ttl,
            pod_ifindex: self.interfaces.pod,
            ..remote.way(&self.interfaces)
        };
        let entry = self.flows.entry(key).or_default();
        *entry = flow;
        entry
    }
}

/// Makes a permit that of packets with this one's DSCP and TTL.
pub fn remember<F: Cluster>(flow: &mut Flow, packet: &Packet<F>) {
    for (mode, ttl) in [
        (&mut flow.egress_mode, &mut flow.egress_ttl),
        (&mut flow.ingress_mode, &mut flow.ingress_ttl),
    ] {
        *mode = *mode & 0b11 | packet.tos & !0b11;
        *ttl = packet.ttl.wrapping_sub(1);
    }
}
