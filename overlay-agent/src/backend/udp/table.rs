//! Whose subnet is behind which address: what the forwarder goes by. Never changed, only replaced. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnetwork::Ipv4Network;

use super::{counters::Event, packet};

/// The nodes of the pod network and this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    network: Ipv4Network,
    /// The subnet of this node.
    own: Ipv4Network,
    /// Every node sends from and to this port: leases do not say one.
    port: u16,
    /// By first address.
    subnets: Vec<Subnet>,
    /// Addresses of the nodes, in order.
    nodes: Vec<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet {
    first: Ipv4Addr,
    last: Ipv4Addr,
    node: Ipv4Addr,
}

impl Table {
    /// `peers`: the subnet and the public address of each.
    pub fn new(
        network: Ipv4Network,
        own: Ipv4Network,
        port: u16,
        peers: impl IntoIterator<Item = (Ipv4Network, Ipv4Addr)>,
    ) -> Self {
        let subnet = |(subnet, node): (Ipv4Network, Ipv4Addr)| Subnet {
            first: subnet.network(),
            last: subnet.broadcast(),
            node,
        };
        let mut subnets: Vec<_> = peers.into_iter().map(subnet).collect();
        subnets.sort_by_key(|subnet| subnet.first);
        let mut nodes: Vec<_> = subnets.iter().map(|subnet| subnet.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Self {
            network,
            own,
            port,
            subnets,
            nodes,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of this node's device.
    pub fn own_address(&self) -> Ipv4Addr {
        self.own.network()
    }

    fn node_of(&self, inner: Ipv4Addr) -> Option<Ipv4Addr> {
        let after = self.subnets.partition_point(|subnet| subnet.first <= inner);
        let subnet = self.subnets[..after].last()?;
        (inner <= subnet.last).then_some(subnet.node)
    }

    /// The node to send a packet of the device to, with one hop taken off; or what becomes of it
    /// instead.
    pub fn outbound(&self, packet: &mut [u8]) -> Result<Ipv4Addr, Event> {
        let (_, destination) = packet::addresses(packet).ok_or(Event::NotIpv4)?;
        let node = self.node_of(destination).ok_or(Event::NoNode)?;
        if packet::decrement_ttl(packet) {
            Ok(node)
        } else {
            Err(Event::OutTtl)
        }
    }

    /// Takes one hop off a datagram's packet, if it may be given to the device. It has to come from a
    /// node, speak for that node's subnet or for nobody's in the pod network, and be for this node's
    /// subnet.
    pub fn inbound(&self, from: SocketAddrV4, packet: &mut [u8]) -> Result<(), Event> {
        let sender = *from.ip();
        if self.nodes.binary_search(&sender).is_err() {
            return Err(Event::UnknownSender);
        }
        // Pods whose packets are masqueraded have the address of their node.
        if from.port() != self.port {
            return Err(Event::SenderPort);
        }
        let (source, destination) = packet::addresses(packet).ok_or(Event::Malformed)?;
        let speaks_for = match self.node_of(source) {
            Some(node) => node == sender,
            // What a node forwards for others without masquerading it.
            None => !self.network.contains(source),
        };
        if !speaks_for {
            return Err(Event::InnerSource);
        }
        if !self.own.contains(destination) {
            return Err(Event::InnerDestination);
        }
        if packet::decrement_ttl(packet) {
            Ok(())
        } else {
            Err(Event::InTtl)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 8285;
    const NODE_2: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const NODE_3: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn table() -> Table {
        let peers = [("10.5.8.0/22", NODE_3), ("10.5.2.0/24", NODE_2)];
        let peers = peers.map(|(subnet, node)| (net(subnet), node));
        Table::new(net("10.5.0.0/16"), net("10.5.1.0/24"), PORT, peers)
    }

    fn packet(source: [u8; 4], destination: [u8; 4], ttl: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, ttl, 17, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend([0; 8]);
        packet
    }

    fn outbound(destination: [u8; 4], ttl: u8) -> Result<Ipv4Addr, Event> {
        table().outbound(&mut packet([10, 5, 1, 7], destination, ttl))
    }

    fn inbound(from: (Ipv4Addr, u16), source: [u8; 4], destination: [u8; 4]) -> Result<(), Event> {
        let from = SocketAddrV4::new(from.0, from.1);
        table().inbound(from, &mut packet(source, destination, 64))
    }

    #[test]
    fn the_subnet_of_the_destination_decides() {
        for (destination, node) in [
            ([10, 5, 2, 0], Ok(NODE_2)),
            ([10, 5, 2, 255], Ok(NODE_2)),
            ([10, 5, 8, 0], Ok(NODE_3)),
            ([10, 5, 11, 255], Ok(NODE_3)),
            ([10, 5, 1, 9], Err(Event::NoNode)),
            ([10, 5, 3, 0], Err(Event::NoNode)),
            ([10, 5, 7, 255], Err(Event::NoNode)),
            ([10, 5, 12, 0], Err(Event::NoNode)),
            ([0, 0, 0, 0], Err(Event::NoNode)),
        ] {
            assert_eq!(outbound(destination, 64), node, "{destination:?}");
        }
        let nobody = Table::new(net("10.5.0.0/16"), net("10.5.1.0/24"), PORT, []);
        let mut packet = packet([10, 5, 1, 7], [10, 5, 2, 1], 64);
        assert_eq!(nobody.outbound(&mut packet), Err(Event::NoNode));
    }

    #[test]
    fn a_hop_is_taken_off_at_either_end() {
        assert_eq!(outbound([10, 5, 2, 1], 1), Err(Event::OutTtl));
        // A route that is missing is answered before hops count, as with flannel.
        assert_eq!(outbound([10, 5, 3, 1], 1), Err(Event::NoNode));
        let from = SocketAddrV4::new(NODE_2, PORT);
        let mut last = packet([10, 5, 2, 7], [10, 5, 1, 7], 1);
        assert_eq!(table().inbound(from, &mut last), Err(Event::InTtl));
        let mut before = packet([10, 5, 2, 7], [10, 5, 1, 7], 2);
        assert_eq!(table().inbound(from, &mut before), Ok(()));
        assert_eq!(before[8], 1);
    }

    #[test]
    fn a_node_speaks_for_its_subnet_and_for_what_is_outside_the_pod_network() {
        let to = [10, 5, 1, 7];
        assert_eq!(inbound((NODE_2, PORT), [10, 5, 2, 7], to), Ok(()));
        assert_eq!(inbound((NODE_3, PORT), [10, 5, 9, 7], to), Ok(()));
        assert_eq!(inbound((NODE_2, PORT), [172, 16, 0, 1], to), Ok(()));
        for source in [[10, 5, 9, 7], [10, 5, 1, 8], [10, 5, 3, 1]] {
            let refused = inbound((NODE_2, PORT), source, to);
            assert_eq!(refused, Err(Event::InnerSource), "{source:?}");
        }
    }

    #[test]
    fn nobody_but_nodes_is_heard_and_they_only_from_their_port() {
        let (from, to) = ([10, 5, 2, 7], [10, 5, 1, 7]);
        let stranger = Ipv4Addr::new(192, 0, 2, 9);
        assert_eq!(
            inbound((stranger, PORT), from, to),
            Err(Event::UnknownSender)
        );
        assert_eq!(inbound((NODE_2, 40_000), from, to), Err(Event::SenderPort));
    }

    #[test]
    fn what_is_for_other_subnets_is_not_passed_on() {
        for destination in [
            [10, 5, 8, 1],
            [192, 0, 2, 1],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
        ] {
            let refused = inbound((NODE_2, PORT), [10, 5, 2, 7], destination);
            assert_eq!(refused, Err(Event::InnerDestination), "{destination:?}");
        }
    }

    #[test]
    fn other_bytes_than_ipv4_are_refused_in_both_directions() {
        let from = SocketAddrV4::new(NODE_2, PORT);
        for mut bytes in [vec![], vec![0x45; 19], vec![0x60; 40]] {
            assert_eq!(table().inbound(from, &mut bytes), Err(Event::Malformed));
            assert_eq!(table().outbound(&mut bytes), Err(Event::NotIpv4));
        }
    }
}
