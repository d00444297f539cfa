use std::net::Ipv4Addr;

use super::*;
use crate::{
    backend::{HostGw, Kind as _, Vxlan},
    model::{Underlay, VxlanEnd},
};

fn local(direct_routing: bool) -> LocalNode {
    let vxlan = Vxlan {
        direct_routing,
        ..Vxlan::DEFAULT
    };
    LocalNode {
        network: "10.5.0.0/16".parse().expect("a network"),
        subnet: "10.5.1.0/24".parse().expect("a subnet"),
        underlay: Underlay {
            ifindex: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            hardware: false,
            ethernet: true,
            address: Ipv4Addr::new(192, 0, 2, 1),
            public_ip: Ipv4Addr::new(198, 51, 100, 1),
        },
        forwarding: vxlan.forwarding::<V4>(),
        device: None,
        vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        lease_data: None,
    }
}

fn peer(subnet: &str, last: u8, mac: u8) -> Peer {
    peer_at(subnet, last, MacAddr::new([2, 0, 0, 0, 0, mac]))
}

fn peer_at(subnet: &str, last: u8, mac: MacAddr) -> Peer {
    let subnet = subnet.parse().expect("a subnet");
    Vxlan::peer_at::<V4>(subnet, Ipv4Addr::new(192, 0, 2, last), VxlanEnd::new(mac))
}

fn admitted(local: LocalNode, peers: &[Peer]) -> Admission {
    let peers = peers
        .iter()
        .map(|peer| (peer.subnet, peer.clone()))
        .collect();
    let on_link = [(Ipv4Addr::new(192, 0, 2, 3), Some(2))].into();
    admit(&Desired { local, peers }, &on_link)
}

fn reason(peer: Peer) -> Option<RefusalReason> {
    let admission = admitted(local(false), &[peer]);
    admission.refused.first().map(|refusal| refusal.reason)
}

#[test]
fn a_peer_that_would_steal_local_traffic_is_refused() {
    use RefusalReason::{CoversUnderlay, OverlapsOwnSubnet, OwnPublicIp, OwnSubnet};
    assert_eq!(reason(peer("10.5.2.0/24", 2, 2)), None);
    assert_eq!(reason(peer("10.5.1.0/24", 2, 2)), Some(OwnSubnet));
    assert_eq!(reason(peer("10.5.1.0/25", 2, 2)), Some(OverlapsOwnSubnet));
    assert_eq!(reason(peer("10.5.0.0/16", 2, 2)), Some(OverlapsOwnSubnet));
    assert_eq!(reason(peer("10.5.2.0/24", 1, 2)), Some(OwnPublicIp));
    assert_eq!(reason(peer("192.0.0.0/8", 200, 2)), Some(CoversUnderlay));
    assert_eq!(reason(peer("192.0.2.128/25", 200, 2)), Some(CoversUnderlay));
    let clone = Peer {
        public_ip: Ipv4Addr::new(198, 51, 100, 1),
        ..peer("10.5.2.0/24", 2, 2)
    };
    assert_eq!(reason(clone), Some(OwnPublicIp));
}

#[test]
fn a_tunnelled_peer_needs_a_mac_of_its_own() {
    let group = peer_at("10.5.2.0/24", 2, MacAddr::new([0xff; 6]));
    assert_eq!(reason(group), Some(RefusalReason::InvalidMac));
    let zero = peer_at("10.5.2.0/24", 2, MacAddr::ZERO);
    assert_eq!(reason(zero), Some(RefusalReason::InvalidMac));
    assert_eq!(
        reason(peer("10.5.2.0/24", 2, 1)),
        Some(RefusalReason::OwnMac)
    );
}

#[test]
fn two_nodes_with_one_mac_are_told_apart_by_their_address() {
    let stale_lease_of_the_same_node = [peer("10.5.2.0/24", 2, 2), peer("10.5.3.0/24", 2, 2)];
    assert_eq!(
        admitted(local(false), &stale_lease_of_the_same_node).refused,
        []
    );

    let clones = [peer("10.5.2.0/24", 2, 2), peer("10.5.3.0/24", 4, 2)];
    let admission = admitted(local(false), &clones);
    assert_eq!(admission.accepted.len(), 1);
    assert_eq!(
        admission.refused[0].reason,
        RefusalReason::MacOf(clones[0].subnet)
    );
}

#[test]
fn subnets_that_start_alike_cannot_both_be_tunnelled() {
    let nested = [peer("10.5.2.0/23", 2, 2), peer("10.5.2.0/24", 4, 4)];
    let admission = admitted(local(false), &nested);
    assert_eq!(
        admission.refused[0].reason,
        RefusalReason::BaseOf(nested[0].subnet)
    );
}

#[test]
fn only_an_on_link_peer_is_direct_and_it_needs_no_mac() {
    let on_link = peer_at("10.5.2.0/24", 3, MacAddr::ZERO);
    let peers = [on_link, peer("10.5.3.0/24", 4, 4)];
    let admission = admitted(local(true), &peers);
    assert_eq!(
        admission.accepted[&peers[0].subnet].1,
        PeerPath::Direct { ifindex: 2 }
    );
    assert_eq!(admission.accepted[&peers[1].subnet].1, PeerPath::Tunnel);

    let host_gw = LocalNode {
        forwarding: HostGw.forwarding::<V4>(),
        ..local(false)
    };
    let admission = admitted(host_gw, &peers);
    assert!(
        admission
            .accepted
            .values()
            .all(|(_, path)| *path == PeerPath::Direct { ifindex: 2 })
    );
}

#[test]
fn a_refusal_reads_as_a_sentence() {
    let admission = admitted(local(false), &[peer("10.5.1.0/24", 2, 2)]);
    assert_eq!(
        admission.refused[0].to_string(),
        "peer 10.5.1.0/24 at 192.0.2.2 refused: it leases this node's own subnet"
    );
}
