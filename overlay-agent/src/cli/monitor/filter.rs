//! Which packets are shown.

use std::net::IpAddr;

use anyhow::ensure;
use ipnetwork::IpNetwork;
use overlay_common::{node::Node, outcome::Kind};

use crate::{
    datapath::{Maps, OverlayMaps, PacketEvent},
    model::{Family, each_family},
};

#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Any, if it is empty.
    kinds: Vec<Kind>,
    pod: Option<IpAddr>,
    peer: Option<Peer>,
}

/// Another node. Packets that are not in the tunnel are its own by the pods they are from, or for.
#[derive(Clone, Debug)]
struct Peer {
    address: IpAddr,
    subnets: Vec<IpNetwork>,
}

impl Filter {
    /// Packets of these kinds, or of any, and of this pod and this node if they are given.
    pub fn new(
        kinds: Vec<Kind>,
        pod: Option<IpAddr>,
        peer: Option<IpAddr>,
        maps: &Maps,
    ) -> anyhow::Result<Self> {
        let peer = match peer {
            None => None,
            Some(address) => {
                let of = each_family!(maps.overlays.as_ref(), maps => subnets(maps, address)?);
                let subnets = [of.ipv4, of.ipv6].concat();
                ensure!(
                    !subnets.is_empty(),
                    "no node has the public IP {address}: `overlay-agent routes` shows which there are"
                );
                Some(Peer { address, subnets })
            }
        };
        Ok(Self { kinds, pod, peer })
    }

    pub fn wants(&self, event: &PacketEvent) -> bool {
        let ends = event.ends.map(|ends| ends.map(|end| end.ip()));
        let has_end =
            |is: &dyn Fn(IpAddr) -> bool| ends.is_some_and(|ends| ends.into_iter().any(is));
        let is_of_kind = self.kinds.is_empty() || self.kinds.iter().any(|kind| event.is(*kind));
        let is_of_pod = self.pod.is_none_or(|pod| has_end(&|end| end == pod));
        let is_of_peer = self.peer.as_ref().is_none_or(|peer| {
            let is_its =
                |end| end == peer.address || peer.subnets.iter().any(|subnet| subnet.contains(end));
            event.peer == Some(peer.address) || has_end(&is_its)
        });
        is_of_kind && is_of_pod && is_of_peer
    }
}

/// The subnets of the node at `address`.
fn subnets<F: Family>(maps: &OverlayMaps<F>, address: IpAddr) -> anyhow::Result<Vec<IpNetwork>> {
    if maps.served_config()?.is_none() {
        return Ok(Vec::new());
    }
    let nodes = maps.nodes()?;
    let is_its = |index| {
        let node = nodes.get(index);
        let vtep = |node: &Node<F>| -> IpAddr { F::Address::from(node.vtep).into() };
        node.is_some_and(|node| vtep(node) == address)
    };
    let routes = maps.routes()?;
    let its = routes.iter().filter(|(_, route)| is_its(&route.node));
    Ok(its.map(|(subnet, _)| (*subnet).into()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, source: [u8; 4], peer: Option<[u8; 4]>) -> PacketEvent {
        PacketEvent {
            hook: "egress",
            kind: kind.name(),
            outcome: "ttl",
            meaning: "What it means.",
            interface: "vetha".to_owned(),
            protocol: Some("udp".to_owned()),
            ends: Some([(source, 1).into(), ([10, 5, 1, 2], 2).into()]),
            peer: peer.map(IpAddr::from),
            bytes: 90,
        }
    }

    #[test]
    fn kinds_pods_and_peers_narrow_what_is_shown() {
        let (peer, pod) = ([172, 30, 0, 12], [10, 5, 2, 3]);
        let all = Filter::default();
        let drops = Filter {
            kinds: vec![Kind::Drop],
            ..Filter::default()
        };
        let of_pod = Filter {
            pod: Some(pod.into()),
            ..Filter::default()
        };
        let of_peer = Filter {
            peer: Some(Peer {
                address: peer.into(),
                subnets: vec!["10.5.2.0/24".parse().unwrap()],
            }),
            ..Filter::default()
        };
        let wants = |event: &PacketEvent| {
            [&all, &drops, &of_pod, &of_peer].map(|filter| filter.wants(event))
        };
        let [other, decline] = [[10, 5, 3, 4], pod];
        assert_eq!(
            wants(&event(Kind::Drop, other, None)),
            [true, true, false, false]
        );
        assert_eq!(
            wants(&event(Kind::Decline, decline, None)),
            [true, false, true, true]
        );
        let tunnelled = event(Kind::Decline, other, Some(peer));
        assert_eq!(wants(&tunnelled), [true, false, false, true]);
        let bare = PacketEvent {
            ends: None,
            ..event(Kind::Drop, other, None)
        };
        assert_eq!(wants(&bare), [true, true, false, false]);
    }
}
