//! The network under the nodes: Ethernet segments and the router between them, in one namespace,
//! the hub. Segment `s` is the bridge `seg<s>` with 172.30.s.0/24; the hub has address .1 on each
//! and forwards.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

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

/// The hub.
#[derive(Debug)]
pub struct Underlay {
    hub: Namespace,
    wire: Wire,
}

impl Underlay {
    pub fn create(hub: Namespace, segments: u8, wire: Wire) -> Result<Self> {
        hub.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        hub.set_sysctl("net/ipv4/ip_forward", "1")?;
        for segment in 0..segments {
            let router = router(segment);
            hub.ip_batch(&format!(
                "link add seg{segment} type bridge mcast_snooping 0\n\
                 addr add {router}/24 dev seg{segment}\n\
                 link set seg{segment} up\n"
            ))?;
        }
        Ok(Self { hub, wire })
    }

    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    /// Connects `node` to a segment: `eth0` in the node, an interface of the node's name in the hub.
    pub fn connect(
        &self,
        node: &Namespace,
        name: &str,
        segment: u8,
        address: Ipv4Addr,
    ) -> Result<()> {
        let (hub, router) = (self.hub.name(), router(segment));
        node.ip_batch(&format!(
            "link add {NODE_INTERFACE} mtu {UNDERLAY_MTU} type veth \
                 peer name {name} mtu {UNDERLAY_MTU} netns {hub}\n\
             addr add {address}/24 dev {NODE_INTERFACE}\n\
             link set {NODE_INTERFACE} up\n\
             route add default via {router}\n"
        ))?;
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

/// The hub's address on a segment, the default gateway there.
pub fn router(segment: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, segment, 1)
}

/// Address of the `index`-th node of a lab, which is on `segment`.
pub fn node_address(segment: u8, index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, segment, 11 + index)
}
