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

impl<F: Family> OwnDevice<F> {
    /// A device with the first address of the node's subnet, alone, as most of flannel's have it.
    pub fn of_subnet(name: impl Into<String>, subnet: F::Network) -> Self {
        Self {
            name: name.into(),
            has_fdb: false,
            address: F::host(F::first(subnet)),
            routes: Vec::new(),
        }
    }
}

impl<F: Family> DeviceRoute<F> {
    /// A route to whom the device itself can tell apart.
    pub const fn to(destination: F::Network) -> Self {
        Self {
            destination,
            gateway: None,
            onlink: false,
            metric: None,
        }
    }

    /// A route by a gateway that is at the device.
    pub const fn onlink(destination: F::Network, gateway: F::Address) -> Self {
        Self {
            gateway: Some(gateway),
            onlink: true,
            ..Self::to(destination)
        }
    }
}

impl<F: Family> ViaDevice<F> {
    /// A peer of a device without link-layer addresses.
    pub const fn routed(route: Option<DeviceRoute<F>>) -> Self {
        Self {
            route,
            neighbour: None,
            fdb: None,
        }
    }
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
