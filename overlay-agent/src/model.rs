//! The vocabulary shared by the control plane and the two tiers: what this node is, who its peers
//! are. No I/O.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;

/// How pod packets reach other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// vxlan; with `direct_routing`, peers whose address is on-link are reached without it.
    Vxlan(VxlanBackend),
    /// Routes only: every peer must be on-link.
    HostGw,
    /// Leases a subnet and programs nothing.
    Alloc,
}

/// Parameters of the vxlan backend, as in the network config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanBackend {
    pub vni: u32,
    /// `None`: the kernel's default, 8472.
    pub port: Option<u16>,
    /// Underlay MTU to assume instead of the interface's.
    pub mtu: Option<u32>,
    pub gbp: bool,
    pub learning: bool,
    pub direct_routing: bool,
}

/// The interface tunnel packets leave by, and the address they leave with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    pub ifindex: u32,
    pub name: String,
    pub mtu: u32,
    /// Whether it is a network card, or a bond of them, rather than a device of the kernel's own
    /// such as a veth: only there is native XDP free.
    pub hardware: bool,
    /// Source of tunnel packets: an address of the interface.
    pub address: Ipv4Addr,
    /// What the lease advertises (`--public-ip`, else `address`).
    pub public_ip: Ipv4Addr,
}

/// This node as the tiers must program it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// The whole pod network.
    pub network: Ipv4Network,
    /// The subnet this node leases.
    pub subnet: Ipv4Network,
    pub underlay: Underlay,
    pub backend: Backend,
    /// MAC of `flannel.<VNI>`; `MacAddr::ZERO` for backends without a device.
    pub vtep_mac: MacAddr,
}

/// A remote node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub subnet: Ipv4Network,
    pub public_ip: Ipv4Addr,
    /// `MacAddr::ZERO` for backends without one.
    pub vtep_mac: MacAddr,
}

/// What both tiers must bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub local: LocalNode,
    /// Keyed by subnet. Never contains the own subnet.
    pub peers: BTreeMap<Ipv4Network, Peer>,
}

impl VxlanBackend {
    /// UDP port when the config leaves it open: the Linux default, not IANA's 4789.
    pub const DEFAULT_PORT: u16 = 8472;

    pub fn port(&self) -> u16 {
        self.port.unwrap_or(Self::DEFAULT_PORT)
    }

    /// `flannel.<VNI>`.
    pub fn device_name(&self) -> String {
        Self::name_of(self.vni)
    }

    /// Name of the device with this VNI.
    pub fn name_of(vni: u32) -> String {
        format!("flannel.{vni}")
    }
}
