//! What was found out about the packet's way.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use super::{
    fast::Fast,
    packet::{Packet, Translated},
    rules::Passage,
};

/// The facts. What does not concern the packet is `None`, and so is what could not be found out.
#[derive(Clone, Debug)]
pub struct Facts {
    pub packet: Packet,
    pub source: End,
    pub destination: End,
    /// Of the packet's family; `None` if this node does not serve it.
    pub overlay: Option<Overlay>,
    /// Where the packet comes from, or where it is delivered.
    pub sender: Option<Pod>,
    pub receiver: Option<Pod>,
    pub translation: Option<Translation>,
    /// Of the connection that conntrack knows the packet to be of, whether it was answered.
    pub connection: Option<bool>,
    /// Who has the other end.
    pub peer: Option<Peer>,
    /// The kernel's route, or why it has none.
    pub route: Option<Result<Route, String>>,
    /// What rules say of the packet, and of the tunnel packet around it.
    pub rules: Option<Passage>,
    pub outer_rules: Option<Passage>,
    /// The way between the nodes: where tunnel packets go, or come from.
    pub underlay: Option<Result<Route, String>>,
    pub fast: Fast,
    /// What could not be asked, in sentences.
    pub missing: Vec<String>,
}

/// What an address of the packet is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In the node's own subnet, and none of its own addresses.
    PodHere,
    /// In the pod network.
    PodElsewhere,
    /// An address of the node itself.
    Host,
    Outside,
}

#[derive(Clone, Debug)]
pub struct Overlay {
    pub vtep: IpAddr,
    pub vni: Option<u32>,
    pub port: Option<u16>,
    /// What pods were told to use.
    pub pod_mtu: Option<u32>,
    /// Bytes of the tunnel's headers.
    pub overhead: u32,
    /// The tunnel device, if there is one.
    pub device: Option<Interface>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mtu: u32,
    pub is_up: bool,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The host's side of its interface; `None` where its bridge does not know it.
    pub interface: Option<Interface>,
    /// Its bridge, or the interface itself.
    pub gateway: Interface,
    pub mac: Option<String>,
    /// What its interface is, if the programs do not serve such.
    pub unserved: Option<String>,
}

/// Where netfilter sends the packets of the connection instead, or in whose name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    pub of: Translated,
    pub to: SocketAddr,
    /// Who remembers it: `conntrack` or `the flow table`.
    pub known_by: &'static str,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub subnet: IpNetwork,
    /// Where tunnel packets to it go; `None` if its forwarding entry is missing.
    pub vtep: Option<IpAddr>,
    pub is_tunnelled: bool,
    /// Where the kernel's tunnel device would send them, if that is another place.
    pub kernel_vtep: Option<IpAddr>,
    pub has_kernel_route: bool,
    /// What the agent's probes say, if that is trouble: state and meaning.
    pub trouble: Option<(String, String)>,
}

/// A way that packets take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `None` for the node itself.
    pub interface: Option<Interface>,
    /// `None` where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// MAC address of whom frames are sent to; `None` while it is not known, and where there is none.
    pub neighbour: Option<String>,
    /// Of the route itself.
    pub mtu: Option<u32>,
    /// Delivered here.
    pub is_local: bool,
}

impl Route {
    /// The largest packet it takes.
    pub fn room(&self) -> Option<u32> {
        let device = self.interface.as_ref().map(|interface| interface.mtu);
        device.into_iter().chain(self.mtu).min()
    }
}
