//! Where the peers of a family are, to tell at once whether an event of the kernel is about one of them.
//! Pure.

use std::collections::{BTreeMap, btree_map::Entry};

use overlay_common::addr::MacAddr;

use crate::model::{Family, Peer, pack};

/// Addresses and tunnel ends of peers, with the number of peers that have each.
#[derive(Debug)]
pub struct Ends<F: Family> {
    addresses: BTreeMap<F::Address, u32>,
    tunnels: BTreeMap<(MacAddr, F::Address), u32>,
}

impl<F: Family> Default for Ends<F> {
    fn default() -> Self {
        Self {
            addresses: BTreeMap::new(),
            tunnels: BTreeMap::new(),
        }
    }
}

impl<F: Family> Ends<F> {
    pub fn of<'a>(peers: impl IntoIterator<Item = &'a Peer<F>>) -> Self {
        let mut ends = Self::default();
        for peer in peers {
            ends.add(peer);
        }
        pack(&mut ends.addresses);
        pack(&mut ends.tunnels);
        ends
    }

    pub fn add(&mut self, peer: &Peer<F>) {
        *self.addresses.entry(peer.public_ip).or_default() += 1;
        if let Some(tunnel) = tunnel(peer) {
            *self.tunnels.entry(tunnel).or_default() += 1;
        }
    }

    pub fn remove(&mut self, peer: &Peer<F>) {
        decrease(self.addresses.entry(peer.public_ip));
        if let Some(tunnel) = tunnel(peer) {
            decrease(self.tunnels.entry(tunnel));
        }
    }

    /// Whether a peer has its address in the network.
    pub fn any_in(&self, network: F::Network) -> bool {
        let within = F::first(network)..=F::last(network);
        self.addresses.range(within).next().is_some()
    }

    /// Whether packets to this link-layer address go to a peer at this address.
    pub fn has_tunnel(&self, mac: MacAddr, remote: F::Address) -> bool {
        self.tunnels.contains_key(&(mac, remote))
    }
}

fn tunnel<F: Family>(peer: &Peer<F>) -> Option<(MacAddr, F::Address)> {
    peer.via_device.as_ref()?.fdb
}

fn decrease<K: Ord>(entry: Entry<'_, K, u32>) {
    if let Entry::Occupied(mut count) = entry {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        backend::Vxlan,
        model::{V4, VxlanEnd},
    };

    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);

    #[test]
    fn an_end_is_there_as_long_as_one_of_its_peers_is() {
        let peer =
            |subnet: &str| Vxlan::peer_at::<V4>(subnet.parse().unwrap(), NODE, VxlanEnd::new(MAC));
        let (one, other) = (peer("10.5.1.0/24"), peer("10.5.2.0/24"));
        let mut ends = Ends::<V4>::of([&one, &other]);
        let is_there = |ends: &Ends<V4>| {
            let around = ends.any_in("192.168.0.0/16".parse().unwrap());
            let elsewhere = ends.any_in("192.168.8.0/24".parse().unwrap());
            assert!(!elsewhere);
            (around, ends.has_tunnel(MAC, NODE))
        };
        assert_eq!(is_there(&ends), (true, true));
        ends.remove(&one);
        assert_eq!(is_there(&ends), (true, true));
        ends.remove(&other);
        assert_eq!(is_there(&ends), (false, false));
    }
}
