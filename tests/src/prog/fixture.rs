//! What the maps hold when a program runs: a small cluster, of which a test changes what it is
//! about.
//!
//! This node, 192.168.77.1, has the pods 10.244.1.0/24. The others:
//!
//! | index | VTEP | pods | way |
//! |---|---|---|---|
//! | 1 | 192.168.77.2 | 10.244.2.0/24 | tunnel |
//! | 2 | 192.168.77.3 | 10.244.3.0/24 | direct |
//! | 3 | 192.168.88.4 | 10.244.4.0/24 | tunnel: direct is allowed, but a router is between |
//! | 4 | 192.168.77.99 | 10.244.5.0/24 | tunnel; no neighbour answers for it |

use std::collections::BTreeMap;

use overlay_common::{
    addr::{Ipv4Be, MacAddr},
    config::{Config, FASTPATH_STRICT},
    encap::{EncapHeader, EncapParams},
    flow::{Flow, FlowKey4, FlowWords},
    node::{
        Gateway, MODE_DIRECT, MODE_TUNNEL, NODE_DIRECT, NODE_VALID, Nexthop, Node, Peer, PodKey,
        PodPort,
    },
    route::Route,
    stamp::stamp,
};

use super::{
    node::{GATEWAY_MAC, Interfaces, POD_VETH_MTU, UNDERLAY_MAC, neighbour_mac},
    packet::{ETH_LEN, Outer, Packet, Transport, hop, with_macs},
};

pub const VTEP: [u8; 4] = [192, 168, 77, 1];
pub const VNI: u32 = 0x00a1_b2c3;
pub const VXLAN_PORT: u16 = 8472;
pub const POD: [u8; 4] = [10, 244, 1, 10];
/// MTU of the pod network.
pub const POD_MTU: u16 = 1450;
/// TTL of outer headers.
pub const OUTER_TTL: u8 = 64;
pub const VTEP_MAC: MacAddr = MacAddr::new([0x02, 0xee, 0, 0, 0, 1]);
pub const POD_MAC: MacAddr = MacAddr::new([0x02, 0xdd, 0, 0, 0, 10]);
/// UDP source port of the tunnel packets of a granted flow.
pub const SOURCE_PORT: u16 = 0xabcd;
pub const GENERATION: u32 = 7;

/// A node other than this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    pub index: u32,
    pub vtep: [u8; 4],
    pub vtep_mac: MacAddr,
    pub subnet: [u8; 4],
    /// A pod there.
    pub pod: [u8; 4],
    /// How the underlay reaches it.
    pub mode: u8,
    flags: u32,
    /// The neighbour that packets to it are sent to.
    pub neighbour: MacAddr,
}

pub const TUNNELLED: Remote = Remote {
    index: 1,
    vtep: [192, 168, 77, 2],
    vtep_mac: MacAddr::new([0x02, 0xee, 0, 0, 0, 2]),
    subnet: [10, 244, 2, 0],
    pod: [10, 244, 2, 20],
    mode: MODE_TUNNEL,
    flags: NODE_VALID,
    neighbour: neighbour_mac(2),
};

pub const DIRECT: Remote = Remote {
    index: 2,
    vtep: [192, 168, 77, 3],
    vtep_mac: MacAddr::new([0x02, 0xee, 0, 0, 0, 3]),
    subnet: [10, 244, 3, 0],
    pod: [10, 244, 3, 30],
    mode: MODE_DIRECT,
    flags: NODE_VALID | NODE_DIRECT,
    neighbour: neighbour_mac(3),
};

pub const ROUTED: Remote = Remote {
    index: 3,
    vtep: [192, 168, 88, 4],
    vtep_mac: MacAddr::new([0x02, 0xee, 0, 0, 0, 4]),
    subnet: [10, 244, 4, 0],
    pod: [10, 244, 4, 40],
    mode: MODE_TUNNEL,
    flags: NODE_VALID | NODE_DIRECT,
    neighbour: neighbour_mac(254),
};

pub const SILENT: Remote = Remote {
    index: 4,
    vtep: [192, 168, 77, 99],
    vtep_mac: MacAddr::new([0x02, 0xee, 0, 0, 0, 5]),
    subnet: [10, 244, 5, 0],
    pod: [10, 244, 5, 50],
    mode: MODE_TUNNEL,
    flags: NODE_VALID,
    neighbour: MacAddr::ZERO,
};

/// This node, as the others see it.
pub const HERE: Remote = Remote {
    index: 1,
    vtep: VTEP,
    vtep_mac: VTEP_MAC,
    subnet: [10, 244, 1, 0],
    pod: POD,
    mode: MODE_TUNNEL,
    flags: NODE_VALID,
    neighbour: UNDERLAY_MAC,
};

/// Indexes of nodes are below this.
pub const NODES: u32 = 5;

const REMOTES: [Remote; 4] = [TUNNELLED, DIRECT, ROUTED, SILENT];

impl Remote {
    /// The template of the headers of tunnel packets to it.
    pub fn encap(&self) -> EncapHeader {
        EncapHeader::template(&EncapParams {
            local: Ipv4Be { octets: VTEP },
            remote: Ipv4Be { octets: self.vtep },
            vni: VNI,
            port: VXLAN_PORT,
            ttl: OUTER_TTL,
            inner_src: VTEP_MAC,
            inner_dst: self.vtep_mac,
        })
    }

    /// A packet from this node's pod to the one there, as the pod sends it.
    pub fn from_pod(&self, transport: Transport) -> Packet {
        Packet::new(POD, self.pod, transport).macs(GATEWAY_MAC, POD_MAC)
    }

    /// `packet`, from this node's pod to the one there, with the MAC addresses that the kernel gives
    /// it on its last hop.
    #[must_use]
    pub fn leaving(&self, packet: &Packet) -> Packet {
        let (to, from) = if self.mode == MODE_DIRECT {
            (self.neighbour, UNDERLAY_MAC)
        } else {
            (self.vtep_mac, VTEP_MAC)
        };
        packet.clone().macs(to, from)
    }

    /// A packet from the pod there to this node's, as the sending node puts it into a tunnel
    /// packet, or sends it directly.
    pub fn to_pod(&self, transport: Transport) -> Packet {
        let packet = Packet::new(self.pod, POD, transport);
        if self.mode == MODE_DIRECT {
            packet.macs(UNDERLAY_MAC, self.neighbour)
        } else {
            packet.macs(VTEP_MAC, self.vtep_mac)
        }
    }

    /// The headers of tunnel packets from there.
    pub fn outer(&self) -> Outer {
        Outer {
            eth_dst: UNDERLAY_MAC,
            eth_src: self.neighbour,
            src: self.vtep.into(),
            dst: VTEP.into(),
            tos: 0,
            ttl: OUTER_TTL - 1,
            id: 0x2e2e,
            src_port: 45_678,
            dst_port: VXLAN_PORT,
            checksum: false,
            vxlan_flags: 0x08,
            vni: VNI,
        }
    }

    /// What `frame` from a pod becomes on the underlay: one hop further, in a tunnel packet to
    /// there.
    pub fn encapsulated(&self, frame: &[u8], source_port: u16) -> Vec<u8> {
        let inner = &hop(frame)[ETH_LEN..];
        let len = u16::try_from(inner.len()).expect("test packets are short");
        let encap = self.encap().finish(len, inner[1], source_port);
        [
            &self.neighbour.octets[..],
            &UNDERLAY_MAC.octets,
            &[0x08, 0x00],
            bytemuck::bytes_of(&encap),
            inner,
        ]
        .concat()
    }

    /// What `frame` from a pod becomes on the underlay without a tunnel.
    pub fn routed(&self, frame: &[u8]) -> Vec<u8> {
        with_macs(&hop(frame), self.neighbour, UNDERLAY_MAC)
    }

    fn node(&self) -> Node {
        let encap = self.encap();
        Node {
            flags: self.flags,
            vtep: Ipv4Be { octets: self.vtep },
            ipv4_sum: encap.ipv4_sum(),
            subnet: Ipv4Be {
                octets: self.subnet,
            },
            vtep_mac: self.vtep_mac,
            prefix_len: 24,
            encap,
            ..Node::default()
        }
    }

    fn nexthop(&self, interfaces: &Interfaces) -> Nexthop {
        Nexthop {
            vtep: self.vtep,
            ifindex: interfaces.underlay,
            dst_mac: self.neighbour,
            mtu: if self.mode == MODE_DIRECT {
                1500
            } else {
                POD_MTU
            },
            src_mac: UNDERLAY_MAC,
            mode: self.mode,
            ..Nexthop::default()
        }
    }
}

/// What the pod gets of `frame`, the bare packet.
pub fn delivered(frame: &[u8]) -> Vec<u8> {
    with_macs(&hop(frame), POD_MAC, GATEWAY_MAC)
}

/// The maps' contents, but for the counters.
#[derive(Clone, Debug, PartialEq)]
pub struct Fixture {
    pub interfaces: Interfaces,
    pub config: Config,
    pub nodes: BTreeMap<u32, Node>,
    pub nexthops: BTreeMap<u32, Nexthop>,
    pub routes: BTreeMap<([u8; 4], u32), Route>,
    pub peers: BTreeMap<Ipv4Be, Peer>,
    pub gateways: BTreeMap<u32, Gateway>,
    pub pods: BTreeMap<PodKey, PodPort>,
    pub flows: BTreeMap<FlowKey4, Flow>,
}

impl Fixture {
    /// The pod's frames have been seen on this interface.
    pub fn seen_at(&mut self, ifindex: u32) {
        for port in self.pods.values_mut() {
            port.ifindex = ifindex;
        }
    }

    /// The cluster with every next hop resolved and no flow.
    pub fn new(interfaces: Interfaces) -> Self {
        let gateway = Gateway {
            mac: GATEWAY_MAC,
            ..Gateway::default()
        };
        let [_, a, b, c] = VNI.to_be_bytes();
        Self {
            interfaces,
            config: Config {
                stamp_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
                lease_ns: 15_000_000_000,
                generation: GENERATION,
                fastpath: FASTPATH_STRICT,
                vtep: Ipv4Be { octets: VTEP },
                network: Ipv4Be {
                    octets: [10, 244, 0, 0],
                },
                network_mask: Ipv4Be {
                    octets: [255, 255, 0, 0],
                },
                subnet: Ipv4Be {
                    octets: [10, 244, 1, 0],
                },
                subnet_mask: Ipv4Be {
                    octets: [255, 255, 255, 0],
                },
                vtep_mac: VTEP_MAC,
                vxlan_port: VXLAN_PORT.to_be_bytes(),
                vni: [a, b, c],
                source_port_min: 32_768,
                source_port_span: 60_999 - 32_768,
                vtep_ifindex: interfaces.tunnel,
                pod_mtu: POD_MTU.into(),
                ..Config::default()
            },
            nodes: REMOTES.map(|remote| (remote.index, remote.node())).into(),
            nexthops: REMOTES
                .map(|remote| (remote.index, remote.nexthop(&interfaces)))
                .into(),
            routes: REMOTES
                .map(|remote| {
                    let route = Route {
                        node: remote.index,
                        ..Route::default()
                    };
                    ((remote.subnet, 24), route)
                })
                .into(),
            peers: REMOTES
                .map(|remote| {
                    (
                        Ipv4Be {
                            octets: remote.vtep,
                        },
                        Peer { node: remote.index },
                    )
                })
                .into(),
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
        }
    }

    /// What the maps of [`TUNNELLED`] hold, whose only other node is [`HERE`].
    pub fn far_end(interfaces: Interfaces) -> Self {
        let near = Self::new(interfaces);
        let config = Config {
            vtep: Ipv4Be {
                octets: TUNNELLED.vtep,
            },
            vtep_mac: TUNNELLED.vtep_mac,
            subnet: Ipv4Be {
                octets: TUNNELLED.subnet,
            },
            ..near.config
        };
        let route = Route {
            node: HERE.index,
            ..Route::default()
        };
        Self {
            config,
            nodes: [(HERE.index, HERE.node())].into(),
            nexthops: [(HERE.index, HERE.nexthop(&interfaces))].into(),
            routes: [((HERE.subnet, 24), route)].into(),
            peers: [(Ipv4Be { octets: HERE.vtep }, Peer { node: HERE.index })].into(),
            ..near
        }
    }

    /// What a packet of the flow `key` carries as its hash if it was not translated on its way.
    pub fn stamp(&self, key: FlowKey4) -> u32 {
        stamp(key.into(), &self.config.stamp_key, self.config.generation)
    }

    /// Gives the flow `key` live leases in both directions, with a pod on `remote`. Returns the
    /// entry for changes.
    pub fn grant(&mut self, key: FlowKey4, remote: &Remote) -> &mut Flow {
        let flow = Flow {
            id: FlowWords::from(key).id(),
            egress_until: u64::MAX,
            ingress_until: u64::MAX,
            generation: self.config.generation,
            node: remote.index,
            gateway_mac: GATEWAY_MAC,
            source_port: SOURCE_PORT.to_be_bytes(),
            pod_mac: POD_MAC,
            pod_mtu: POD_VETH_MTU,
            deliver_mac: GATEWAY_MAC,
            egress_mode: remote.mode,
            ingress_mode: remote.mode,
            pod_ifindex: self.interfaces.pod,
            ..Flow::default()
        };
        let entry = self.flows.entry(key).or_default();
        *entry = flow;
        entry
    }
}
