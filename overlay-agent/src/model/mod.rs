//! The vocabulary shared by the control plane and the two tiers: what this node is, who its peers
//! are. No I/O.
//!
//! A dual-stack node is two nodes of one family each, on one interface with one lease: what is
//! about addresses is generic over the [`Family`], and IPv4 unless said otherwise.

mod alarm;
mod attrs;
mod device;
mod family;
mod forwarding;
mod key;
mod leases;
mod packed;
mod per_family;
#[cfg(test)]
mod properties;
mod store;
mod view;

use std::collections::BTreeMap;

use overlay_common::addr::MacAddr;

pub(crate) use self::per_family::each_family;
pub use self::{
    alarm::Alarm,
    attrs::{LeaseAttrs, ValueError},
    device::{DeviceRoute, OwnDevice, ViaDevice, VxlanEnd},
    family::{ByFamily, Family, V4, V6},
    forwarding::{Direct, Forwarding, Tunnel, TunnelKind},
    key::LeaseKey,
    leases::{LeaseTable, PeerLease},
    packed::pack,
    per_family::PerFamily,
    store::{ConfigText, StoreError, StoreState},
    view::{LeaseView, OwnLease, OwnState},
};

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
    pub forwarding: Forwarding,
    /// What comes with the family's device; `None` for backends without one.
    pub device: Option<OwnDevice<F>>,
    /// MAC of the device; `MacAddr::ZERO` for those that have none.
    pub vtep_mac: MacAddr,
    /// The backend's part of this node's lease.
    pub lease_data: Option<String>,
}

/// A remote node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer<F: Family = V4> {
    pub subnet: F::Network,
    pub public_ip: F::Address,
    /// What reaching it through the backend's device takes; `None` if there is no such way.
    pub via_device: Option<ViaDevice<F>>,
    /// The end of the tunnel the programs may send into; `None` if they cannot make its packets.
    pub vxlan: Option<VxlanEnd>,
}

/// What both tiers must bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired<F: Family = V4> {
    pub local: LocalNode<F>,
    /// Keyed by subnet. Never contains the own subnet.
    pub peers: BTreeMap<F::Network, Peer<F>>,
}

/// This node in the families it serves, at least one.
pub type DesiredNode = PerFamily<Option<Desired>, Option<Desired<V6>>>;

impl DesiredNode {
    /// Number of peers in the family that has more.
    pub fn peers(&self) -> usize {
        let peers = each_family!(self.present(), side => side.map_or(0, |side| side.peers.len()));
        peers.ipv4.max(peers.ipv6)
    }
}

impl<F: Family> Peer<F> {
    /// A peer that is reached without a device of the backend's, if at all.
    pub const fn plain(subnet: F::Network, public_ip: F::Address) -> Self {
        Self {
            subnet,
            public_ip,
            via_device: None,
            vxlan: None,
        }
    }
}

impl<F: Family> LocalNode<F> {
    /// MTU of the family's pod network: what leaves room for the tunnel headers, if there are any.
    pub fn pod_mtu(&self) -> u32 {
        self.forwarding.pod_mtu(self.underlay.mtu)
    }
}
