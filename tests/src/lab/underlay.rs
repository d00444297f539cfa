//! The network under the nodes: Ethernet segments, which are bridges in a namespace of their own,
//! the hub, and a router between them. Segment `s` is the bridge `seg<s>`, with 172.30.s.0/24 and, if
//! the lab's network has IPv6, fd00:172:30:s::/64; the router has address .1 on each.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use overlay_common::addr::MacAddr;

use crate::netns::Namespace;

/// Name of every node's underlay interface.
pub const NODE_INTERFACE: &str = "eth0";
/// MTU of the segments.
pub const UNDERLAY_MTU: u32 = 1500;

/// What the wires between nodes do to large packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// veth as it is: packets cross unsegmented and with checksums left open. Fast, and nothing
    /// like a wire.
    #[default]
    Offloaded,
    /// Like a network card without tunnel offloads: the sender's kernel segments and computes every
    /// checksum, the receiver's GRO merges.
    Segmented,
}

/// The segments and the router.
#[derive(Debug)]
pub struct Underlay {
    hub: Namespace,
    router: Namespace,
    wire: Wire,
    ipv6: bool,
}

impl Underlay {
    pub fn create(
        hub: Namespace,
        router: Namespace,
        segments: u8,
        wire: Wire,
        ipv6: bool,
    ) -> Result<Self> {
        hub.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        router.set_sysctl("net/ipv4/ip_forward", "1")?;
        if ipv6 {
            router.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        let router_name = router.name();
        for segment in 0..segments {
            hub.ip_batch(&format!(
                "link add seg{segment} type bridge mcast_snooping 0\n\
                 link set seg{segment} up\n\
                 link add router{segment} mtu {UNDERLAY_MTU} type veth \
                     peer name seg{segment} mtu {UNDERLAY_MTU} netns {router_name}\n\
                 link set router{segment} master seg{segment} up\n"
            ))?;
            let address = router_address(segment);
            router.ip_batch(&format!(
                "addr add {address}/24 dev seg{segment}\n\
                 link set seg{segment} up\n"
            ))?;
            if ipv6 {
                let address = router_address6(segment);
                router.ip_batch(&format!("addr add {address}/64 dev seg{segment} nodad\n"))?;
            }
        }
        Ok(Self {
            hub,
            router,
            wire,
            ipv6,
        })
    }

    /// Where the bridges are, and the other ends of the nodes' wires.
    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// MAC address of the router on a segment: the next hop to every other one.
    pub fn router_mac(&self, segment: u8) -> Result<MacAddr> {
        self.router.mac(&format!("seg{segment}"))
    }

    /// Connects `node` to a segment: `eth0` in the node, an interface of the node's name in the hub.
    pub fn connect(
        &self,
        node: &Namespace,
        name: &str,
        segment: u8,
        address: Ipv4Addr,
    ) -> Result<()> {
        let (hub, router) = (self.hub.name(), router_address(segment));
        if self.ipv6 {
            // A node that forwards asks for neighbours with its link-local address, and not at all
            // for the seconds in which it makes sure that nobody else has it.
            for scope in ["all", "default"] {
                node.set_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            }
        }
        node.ip_batch(&format!(
            "link add {NODE_INTERFACE} mtu {UNDERLAY_MTU} type veth \
                 peer name {name} mtu {UNDERLAY_MTU} netns {hub}\n\
             addr add {address}/24 dev {NODE_INTERFACE}\n\
             link set {NODE_INTERFACE} up\n\
             route add default via {router}\n"
        ))?;
        if self.ipv6 {
            let (address, router) = (address6(segment, address), router_address6(segment));
            node.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
            node.ip_batch(&format!(
                "addr add {address}/64 dev {NODE_INTERFACE} nodad\n\
                 route add ::/0 via {router}\n"
            ))?;
        }
        self.hub
            .ip_batch(&format!("link set {name} master seg{segment} up\n"))?;
        if self.wire == Wire::Segmented {
            let ends = [(node, NODE_INTERFACE), (&self.hub, name)];
            for (namespace, interface) in ends {
                let features = ["-K", interface, "tso", "off", "gso", "off", "tx", "off"];
                namespace
                    .run("ethtool", features)
                    .context("make the wire segment")?;
            }
            node.run("ethtool", ["-K", NODE_INTERFACE, "gro", "on"])?;
        }
        Ok(())
    }
}

/// The router's address on a segment, the default gateway there.
pub fn router_address(segment: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, segment, 1)
}

/// Address of the `index`-th node of a lab, which is on `segment`.
pub fn node_address(segment: u8, index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, segment, 11 + index)
}

/// The router's IPv6 address on a segment.
pub fn router_address6(segment: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, segment.into(), 0, 0, 0, 1)
}

/// The IPv6 address of a node, which ends as its IPv4 address does.
pub fn address6(segment: u8, address: Ipv4Addr) -> Ipv6Addr {
    let [.., last] = address.octets();
    Ipv6Addr::new(0xfd00, 0x172, 0x30, segment.into(), 0, 0, 0, last.into())
}
