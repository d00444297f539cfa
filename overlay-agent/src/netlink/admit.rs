//! Which peers are programmed, and by which path. Pure.
//!
//! A lease is outside data: one that would steal local traffic or another peer's is refused with a
//! reason, and the others are programmed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    net::Ipv4Addr,
};

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;

use crate::model::{Backend, Desired, LocalNode, Peer};

/// How packets reach a peer in the kernel tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerPath {
    /// Through the vxlan device.
    Tunnel,
    /// Routed without encapsulation through this interface.
    Direct { ifindex: u32 },
}

/// Why a peer is not programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The peer leases the subnet this node leases.
    OwnSubnet,
    /// The peer's subnet and this node's have addresses in common.
    OverlapsOwnSubnet,
    /// The peer advertises this node's own address: a stale lease of this node, or a clone.
    OwnPublicIp,
    /// The peer's subnet contains this node's underlay address or the peer's own: its route would
    /// swallow the tunnel packets themselves.
    CoversUnderlay,
    /// The VTEP MAC is zero or a group address, which no device has.
    InvalidMac,
    /// The VTEP MAC is this node's own; the kernel drops its packets as loops.
    OwnMac,
    /// Another peer with another address has the same VTEP MAC, and the kernel keeps one tunnel
    /// end per MAC.
    MacOf(Ipv4Network),
    /// Another peer's subnet starts at the same address, and the kernel keeps one neighbour per
    /// address.
    BaseOf(Ipv4Network),
}

/// A peer that is not programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub subnet: Ipv4Network,
    pub public_ip: Ipv4Addr,
    pub reason: RefusalReason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subnet,
            public_ip,
            reason,
        } = self;
        write!(f, "peer {subnet} at {public_ip} refused: {reason}")
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnSubnet => f.write_str("it leases this node's own subnet"),
            Self::OverlapsOwnSubnet => f.write_str("its subnet overlaps this node's own"),
            Self::OwnPublicIp => f.write_str("it advertises this node's own address"),
            Self::CoversUnderlay => f.write_str("its subnet contains underlay addresses"),
            Self::InvalidMac => f.write_str("its VTEP MAC is no unicast address"),
            Self::OwnMac => f.write_str("its VTEP MAC is this node's own"),
            Self::MacOf(other) => {
                write!(
                    f,
                    "its VTEP MAC is also that of {other}, which has another address"
                )
            }
            Self::BaseOf(other) => write!(f, "its subnet starts where {other} starts"),
        }
    }
}

/// Peers sorted into those to program and those refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    pub accepted: BTreeMap<Ipv4Network, (Peer, PeerPath)>,
    pub refused: Vec<Refusal>,
}

/// Decides on every peer. `on_link` holds the interface of each peer address that the kernel
/// reaches without a gateway.
pub fn admit(desired: &Desired, on_link: &BTreeMap<Ipv4Addr, u32>) -> Admission {
    let mut admission = Admission::default();
    let mut macs: BTreeMap<MacAddr, (Ipv4Network, Ipv4Addr)> = BTreeMap::new();
    let mut bases: BTreeMap<Ipv4Addr, Ipv4Network> = BTreeMap::new();
    for peer in desired.peers.values() {
        let decision = path(&desired.local, peer, on_link).and_then(|path| {
            if path == PeerPath::Tunnel {
                claim_tunnel(&desired.local, peer, &mut macs, &mut bases)?;
            }
            Ok(path)
        });
        match decision {
            Ok(path) => {
                admission.accepted.insert(peer.subnet, (peer.clone(), path));
            }
            Err(reason) => admission.refused.push(Refusal {
                subnet: peer.subnet,
                public_ip: peer.public_ip,
                reason,
            }),
        }
    }
    admission
}

fn path(
    local: &LocalNode,
    peer: &Peer,
    on_link: &BTreeMap<Ipv4Addr, u32>,
) -> Result<PeerPath, RefusalReason> {
    let own = &local.underlay;
    if peer.subnet == local.subnet {
        return Err(RefusalReason::OwnSubnet);
    }
    if peer.subnet.overlaps(local.subnet) {
        return Err(RefusalReason::OverlapsOwnSubnet);
    }
    if peer.public_ip == own.public_ip || peer.public_ip == own.address {
        return Err(RefusalReason::OwnPublicIp);
    }
    if peer.subnet.contains(own.address) || peer.subnet.contains(peer.public_ip) {
        return Err(RefusalReason::CoversUnderlay);
    }
    Ok(match local.backend {
        Backend::HostGw => PeerPath::Direct {
            ifindex: own.ifindex,
        },
        Backend::Vxlan(backend) if backend.direct_routing => on_link
            .get(&peer.public_ip)
            .map_or(PeerPath::Tunnel, |&ifindex| PeerPath::Direct { ifindex }),
        Backend::Vxlan(_) | Backend::Alloc => PeerPath::Tunnel,
    })
}

fn claim_tunnel(
    local: &LocalNode,
    peer: &Peer,
    macs: &mut BTreeMap<MacAddr, (Ipv4Network, Ipv4Addr)>,
    bases: &mut BTreeMap<Ipv4Addr, Ipv4Network>,
) -> Result<(), RefusalReason> {
    let mac = peer.vtep_mac;
    if mac.is_zero() || mac.is_multicast() {
        return Err(RefusalReason::InvalidMac);
    }
    if mac == local.vtep_mac {
        return Err(RefusalReason::OwnMac);
    }
    if let Some(&other) = bases.get(&peer.subnet.network()) {
        return Err(RefusalReason::BaseOf(other));
    }
    match macs.entry(mac) {
        Entry::Occupied(entry) => {
            let (other, address) = *entry.get();
            if address != peer.public_ip {
                return Err(RefusalReason::MacOf(other));
            }
        }
        Entry::Vacant(entry) => {
            entry.insert((peer.subnet, peer.public_ip));
        }
    }
    bases.insert(peer.subnet.network(), peer.subnet);
    Ok(())
}

#[cfg(test)]
mod tests;
