//! Which peers are programmed, and by which path. Pure.
//!
//! A lease is outside data: one that would steal local traffic or another peer's is refused with a
//! reason, and the others are programmed.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
};

use overlay_common::addr::MacAddr;

use crate::model::{Desired, Direct, Family, LocalNode, Peer, V4};

/// How packets reach a peer in the kernel tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerPath {
    /// Through the backend's device.
    Tunnel,
    /// Routed without encapsulation through this interface.
    Direct { ifindex: u32 },
}

/// Why a peer is not programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason<F: Family = V4> {
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
    MacOf(F::Network),
    /// Another peer's subnet starts at the same address, and the kernel keeps one neighbour per
    /// address.
    BaseOf(F::Network),
}

/// A peer that is not programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<F: Family = V4> {
    pub subnet: F::Network,
    pub public_ip: F::Address,
    pub reason: RefusalReason<F>,
}

impl<F: Family> fmt::Display for Refusal<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subnet,
            public_ip,
            reason,
        } = self;
        write!(f, "peer {subnet} at {public_ip} refused: {reason}")
    }
}

impl<F: Family> fmt::Display for RefusalReason<F> {
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission<F: Family = V4> {
    pub accepted: BTreeMap<F::Network, (Peer<F>, PeerPath)>,
    pub refused: Vec<Refusal<F>>,
    /// Peers that are what they are because of each other: a change of one may concern another.
    pub entangled: BTreeSet<F::Network>,
}

impl<F: Family> Default for Admission<F> {
    fn default() -> Self {
        Self {
            accepted: BTreeMap::new(),
            refused: Vec::new(),
            entangled: BTreeSet::new(),
        }
    }
}

/// The interface of each peer address that the kernel reaches without a gateway, of those looked up.
pub type OnLink<F> = BTreeMap<<F as Family>::Address, Option<u32>>;

/// Decides on every peer.
pub fn admit<F: Family>(desired: &Desired<F>, on_link: &OnLink<F>) -> Admission<F> {
    let mut admission = Admission::default();
    let mut claims = Claims::default();
    for peer in desired.peers.values() {
        let decision = alone(&desired.local, peer, on_link).and_then(|path| {
            if path == PeerPath::Tunnel {
                claims.claim(peer, &mut admission.entangled)?;
            }
            Ok(path)
        });
        match decision {
            Ok(path) => {
                admission.accepted.insert(peer.subnet, (peer.clone(), path));
            }
            Err(reason) => admission.refused.push(Refusal::of(peer, reason)),
        }
    }
    admission
}

/// Decides on a peer as if there were no others.
pub fn alone<F: Family>(
    local: &LocalNode<F>,
    peer: &Peer<F>,
    on_link: &OnLink<F>,
) -> Result<PeerPath, RefusalReason<F>> {
    let path = path(local, peer, on_link)?;
    if let (PeerPath::Tunnel, Some(via)) = (path, &peer.via_device) {
        let neighbour = via.neighbour.map(|(_, mac)| mac);
        for mac in neighbour.into_iter().chain(via.fdb.map(|(mac, _)| mac)) {
            if mac.is_zero() || mac.is_multicast() {
                return Err(RefusalReason::InvalidMac);
            }
            if mac == local.vtep_mac {
                return Err(RefusalReason::OwnMac);
            }
        }
    }
    Ok(path)
}

impl<F: Family> Refusal<F> {
    pub fn of(peer: &Peer<F>, reason: RefusalReason<F>) -> Self {
        Self {
            subnet: peer.subnet,
            public_ip: peer.public_ip,
            reason,
        }
    }
}

fn path<F: Family>(
    local: &LocalNode<F>,
    peer: &Peer<F>,
    on_link: &OnLink<F>,
) -> Result<PeerPath, RefusalReason<F>> {
    let own = &local.underlay;
    if peer.subnet == local.subnet {
        return Err(RefusalReason::OwnSubnet);
    }
    if F::overlap(peer.subnet, local.subnet) {
        return Err(RefusalReason::OverlapsOwnSubnet);
    }
    if peer.public_ip == own.public_ip || peer.public_ip == own.address {
        return Err(RefusalReason::OwnPublicIp);
    }
    if F::contains(peer.subnet, own.address) || F::contains(peer.subnet, peer.public_ip) {
        return Err(RefusalReason::CoversUnderlay);
    }
    Ok(match local.forwarding.direct {
        Direct::Always => PeerPath::Direct {
            ifindex: own.ifindex,
        },
        Direct::OnLink => on_link
            .get(&peer.public_ip)
            .and_then(|ifindex| *ifindex)
            .map_or(PeerPath::Tunnel, |ifindex| PeerPath::Direct { ifindex }),
        Direct::Never => PeerPath::Tunnel,
    })
}

/// What only one peer can have at the device.
struct Claims<F: Family> {
    macs: BTreeMap<MacAddr, (F::Network, F::Address)>,
    bases: BTreeMap<F::Address, F::Network>,
}

impl<F: Family> Default for Claims<F> {
    fn default() -> Self {
        Self {
            macs: BTreeMap::new(),
            bases: BTreeMap::new(),
        }
    }
}

impl<F: Family> Claims<F> {
    fn claim(
        &mut self,
        peer: &Peer<F>,
        entangled: &mut BTreeSet<F::Network>,
    ) -> Result<(), RefusalReason<F>> {
        let Some(via) = peer.via_device else {
            return Ok(());
        };
        let base = via.neighbour.map(|(address, _)| address);
        if let Some(&other) = base.and_then(|base| self.bases.get(&base)) {
            entangled.extend([peer.subnet, other]);
            return Err(RefusalReason::BaseOf(other));
        }
        if let Some((mac, remote)) = via.fdb {
            match self.macs.entry(mac) {
                Entry::Occupied(entry) => {
                    let (other, address) = *entry.get();
                    entangled.extend([peer.subnet, other]);
                    if address != remote {
                        return Err(RefusalReason::MacOf(other));
                    }
                }
                Entry::Vacant(entry) => {
                    entry.insert((peer.subnet, remote));
                }
            }
        }
        self.bases.extend(base.map(|base| (base, peer.subnet)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
