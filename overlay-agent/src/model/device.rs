//! What a backend needs in the kernel, in general terms: what comes with its device, and what reaching a
//! peer through it takes.

use overlay_common::addr::MacAddr;

use super::{Family, V4};

/// What comes with a backend's device, whoever the peers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnDevice<F: Family = V4> {
    pub name: String,
    /// Whether the kernel has forwarding entries for it; the permanent ones are ours.
    pub has_fdb: bool,
    /// Its one address in the pod network.
    pub address: F::Network,
    /// Routes through it beside those of peers.
    pub routes: Vec<DeviceRoute<F>>,
}

/// What the kernel has for a peer that is reached through the backend's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViaDevice<F: Family = V4> {
    /// `None` if another route covers its subnet.
    pub route: Option<DeviceRoute<F>>,
    pub neighbour: Option<(F::Address, MacAddr)>,
    /// Where packets to a link-layer address go.
    pub fdb: Option<(MacAddr, F::Address)>,
}

/// A route through the backend's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRoute<F: Family = V4> {
    pub destination: F::Network,
    pub gateway: Option<F::Address>,
    /// The gateway is at the device, whatever the routing table says of its address.
    pub onlink: bool,
    /// `None`: what the kernel makes of a route without one.
    pub metric: Option<u32>,
}

/// The other end of a vxlan tunnel, as the programs address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanEnd {
    pub mac: MacAddr,
    /// The node says that it takes IPv6 tunnel packets with UDP checksum 0. False for IPv4, where
    /// everybody takes them.
    pub zero_checksum: bool,
}

impl VxlanEnd {
    /// As flannel's.
    pub const fn new(mac: MacAddr) -> Self {
        Self {
            mac,
            zero_checksum: false,
        }
    }
}
