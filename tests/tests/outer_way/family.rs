//! Headers of either address family, and the flows that the tests look at.

use std::{
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{Ipv4Header, Ipv6Header, UdpHeader};
use nix::sys::socket::{setsockopt, sockopt};
use overlay_common::{addr::MacAddr, outcome::Hook};
use overlay_tests::{
    capture::{Direction, Frame},
    decode::decode_ipv4,
    decode6::decode_ipv6,
    differ::Mode,
    lab::{Builder, Lab, Node, family::LabFamily},
    services::Connection,
    traffic::Endpoint,
    wait::wait_for,
};

/// Of both families.
pub const CONFIG: &str = Ipv6Addr::CONFIG;
/// What a change may take to count for a flow that the fast path carries.
pub const BOUND: Duration = Duration::from_secs(1);
pub const DEADLINE: Duration = Duration::from_secs(15);
pub const VXLAN_PORT: u16 = 8472;

/// What a packet's own header says.
#[derive(Clone, Copy, Debug)]
pub struct Seen<A> {
    pub source: A,
    pub tos: u8,
    pub ttl: u8,
}

/// A tunnel packet.
#[derive(Clone, Debug)]
pub struct Tunnelled<A> {
    pub next_hop: MacAddr,
    pub inner: Seen<A>,
}

/// How headers of a family are written and read.
pub trait Header: LabFamily {
    /// What sets a TTL or hop limit, with a value.
    const SET_TTL: [&str; 4];
    /// The tunnel device.
    const TUNNEL: &str;

    /// The node in the pod network, with the address with which it speaks to pods of other nodes.
    fn tunnel_end(node: &Node) -> Result<Endpoint<Self>>;

    /// Sets TOS and TTL of what the socket sends from here on.
    fn set_header(socket: &UdpSocket, tos: u8, ttl: u8) -> nix::Result<()>;

    /// The IP header behind an Ethernet header, and what follows it.
    fn read(frame: &[u8]) -> Option<(Seen<Self>, Vec<u8>)>;
}

impl Header for Ipv4Addr {
    const SET_TTL: [&str; 4] = ["-j", "TTL", "--ttl-set", "33"];
    const TUNNEL: &str = "flannel.1";

    fn tunnel_end(node: &Node) -> Result<Endpoint> {
        Ok(Endpoint {
            namespace: node.namespace.clone(),
            address: node.subnet_env()?.gateway.network(),
        })
    }

    fn set_header(socket: &UdpSocket, tos: u8, ttl: u8) -> nix::Result<()> {
        setsockopt(socket, sockopt::Ipv4Tos, &tos.into())?;
        setsockopt(socket, sockopt::Ipv4Ttl, &ttl.into())
    }

    fn read(frame: &[u8]) -> Option<(Seen<Self>, Vec<u8>)> {
        let packet = decode_ipv4(frame).ok()?;
        let Ipv4Header {
            source,
            time_to_live,
            dscp,
            ecn,
            ..
        } = packet.ip;
        let seen = Seen {
            source: source.into(),
            tos: dscp.value() << 2 | ecn.value(),
            ttl: time_to_live,
        };
        Some((seen, packet.payload))
    }
}

impl Header for Ipv6Addr {
    const SET_TTL: [&str; 4] = ["-j", "HL", "--hl-set", "33"];
    const TUNNEL: &str = "flannel-v6.1";

    fn tunnel_end(node: &Node) -> Result<Endpoint<Self>> {
        Ok(Endpoint {
            namespace: node.namespace.clone(),
            address: node.subnet_env6()?.gateway.network(),
        })
    }

    fn set_header(socket: &UdpSocket, tos: u8, ttl: u8) -> nix::Result<()> {
        setsockopt(socket, sockopt::Ipv6TClass, &tos.into())?;
        setsockopt(socket, sockopt::Ipv6Ttl, &ttl.into())
    }

    fn read(frame: &[u8]) -> Option<(Seen<Self>, Vec<u8>)> {
        let packet = decode_ipv6(frame).ok()?;
        let Ipv6Header {
            source,
            traffic_class,
            hop_limit,
            ..
        } = packet.ip;
        let seen = Seen {
            source: source.into(),
            tos: traffic_class,
            ttl: hop_limit,
        };
        Some((seen, packet.payload))
    }
}

/// The tunnel packet in clear that `frame` is, if it is one.
pub fn tunnelled<A: Header>(frame: &[u8]) -> Option<Tunnelled<A>> {
    let (_, payload) = A::read(frame)?;
    let (udp, rest) = UdpHeader::from_slice(&payload).ok()?;
    if udp.destination_port != VXLAN_PORT {
        return None;
    }
    let (inner, _) = A::read(rest.get(8..)?)?;
    Some(Tunnelled {
        next_hop: MacAddr::new(frame.first_chunk().copied()?),
        inner,
    })
}

/// The tunnel packets among what passed the hub's end of a node's wire, on their way from the node.
pub fn sent<A: Header>(frames: &[Frame]) -> Vec<Tunnelled<A>> {
    let from_node = frames
        .iter()
        .filter(|frame| frame.direction == Direction::Received);
    from_node
        .filter_map(|frame| tunnelled(&frame.bytes))
        .collect()
}

pub fn two_nodes() -> Builder {
    Lab::builder().nodes(2).config(CONFIG)
}

/// Pod `a` of the first node and pod `a` of the second, which can talk.
pub fn pods<A: LabFamily>(lab: &Lab) -> Result<[Endpoint<A>; 2]> {
    let pods = A::add_pods(lab, &['a'])?;
    for node in lab.nodes() {
        node.wait_attached("vetha")?;
    }
    pods.try_into().ok().context("two nodes with a pod each")
}

/// Uses the connections until the fast path carries them, if there is one: at both nodes and in both
/// directions.
pub fn warm(lab: &Lab, mode: Mode, connections: &mut [Connection]) -> Result<()> {
    let count = || -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        for node in lab.nodes() {
            let counters = node.counters()?;
            counts.extend([Hook::Egress, Hook::Ingress].map(|hook| counters.fast(hook)));
        }
        Ok(counts)
    };
    for connection in connections {
        wait_for("the fast path to carry a connection", DEADLINE, || {
            let before = count()?;
            connection.exchange(2_000, 100)?;
            let after = count()?;
            let added: Vec<_> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            ensure!(
                mode == Mode::Off || added.iter().all(|&packets| packets >= 15),
                "fast packets of 20 exchanges: {added:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}
