//! The vocabulary shared by the control plane and the two tiers: what this node is, who its peers
//! are. No I/O.
//!
//! A dual-stack node is two nodes of one family each, on one interface with one lease: what is
//! about addresses is generic over the [`Family`], and IPv4 unless said otherwise.

mod alarm;
mod attrs;
mod family;
mod key;
#[cfg(test)]
mod properties;
mod store;
mod view;

use std::collections::BTreeMap;

use overlay_common::addr::MacAddr;

pub use self::{
    alarm::Alarm,
    attrs::{LeaseAttrs, ValueError, VxlanData},
    family::{Family, V4, V6},
    key::LeaseKey,
    store::{ConfigText, StoreError, StoreState},
    view::{LeaseView, OwnLease, OwnState, PeerLease},
};

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
pub struct Underlay<F: Family = V4> {
    pub ifindex: u32,
    pub name: String,
    pub mtu: u32,
    /// Whether it is a network card, or a bond of them, rather than a device of the kernel's own
    /// such as a veth: only there is native XDP free.
    pub hardware: bool,
    /// Whether its packets have Ethernet headers: those of tun and WireGuard interfaces have none, and
    /// the programs handle no others.
    pub ethernet: bool,
    /// Source of tunnel packets: an address of the interface.
    pub address: F::Address,
    /// What the lease advertises (`--public-ip`, `--public-ipv6`, else `address`).
    pub public_ip: F::Address,
}

/// This node as the tiers must program it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode<F: Family = V4> {
    /// The whole pod network.
    pub network: F::Network,
    /// The subnet this node leases.
    pub subnet: F::Network,
    pub underlay: Underlay<F>,
    pub backend: Backend,
    /// MAC of the family's vxlan device; `MacAddr::ZERO` for backends without one.
    pub vtep_mac: MacAddr,
    /// The vxlan device takes IPv6 tunnel packets with UDP checksum 0.
    pub zero_checksum: bool,
}

/// A remote node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer<F: Family = V4> {
    pub subnet: F::Network,
    pub public_ip: F::Address,
    /// `MacAddr::ZERO` for backends without one.
    pub vtep_mac: MacAddr,
    /// The node says that it takes IPv6 tunnel packets with UDP checksum 0. False for IPv4, where
    /// everybody takes them.
    pub zero_checksum: bool,
}

/// What both tiers must bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired<F: Family = V4> {
    pub local: LocalNode<F>,
    /// Keyed by subnet. Never contains the own subnet.
    pub peers: BTreeMap<F::Network, Peer<F>>,
}

/// This node in the families it serves, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredNode {
    pub ipv4: Option<Desired>,
    pub ipv6: Option<Desired<V6>>,
}

impl DesiredNode {
    /// Number of peers in the family that has more.
    pub fn peers(&self) -> usize {
        let ipv4 = self.ipv4.as_ref().map_or(0, |side| side.peers.len());
        let ipv6 = self.ipv6.as_ref().map_or(0, |side| side.peers.len());
        ipv4.max(ipv6)
    }

    pub fn set_backend(&mut self, backend: Backend) {
        if let Some(side) = &mut self.ipv4 {
            side.local.backend = backend;
        }
        if let Some(side) = &mut self.ipv6 {
            side.local.backend = backend;
        }
    }
}

impl<F: Family> LocalNode<F> {
    /// MTU of the family's pod network: what leaves room for the tunnel headers, if there are any.
    pub fn pod_mtu(&self) -> u32 {
        match &self.backend {
            Backend::Vxlan(vxlan) => vxlan.inner_mtu::<F>(self.underlay.mtu),
            Backend::HostGw | Backend::Alloc => self.underlay.mtu,
        }
    }
}

impl VxlanBackend {
    /// UDP port when the config leaves it open: the Linux default, not IANA's 4789.
    pub const DEFAULT_PORT: u16 = 8472;

    pub fn port(&self) -> u16 {
        self.port.unwrap_or(Self::DEFAULT_PORT)
    }

    /// What is left of the underlay's MTU, or of the configured one, inside the tunnel headers.
    pub fn inner_mtu<F: Family>(&self, underlay_mtu: u32) -> u32 {
        self.mtu.unwrap_or(underlay_mtu).saturating_sub(F::OVERHEAD)
    }
}
