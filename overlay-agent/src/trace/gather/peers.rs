//! Which node has an address.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{
    model::Family,
    probe,
    trace::facts::Peer,
    view::{Overlay, PeerRoute, Snapshot},
};

/// The node that has `address`.
pub fn peer(snapshot: &Snapshot, address: IpAddr, missing: &mut Vec<String>) -> Option<Peer> {
    let tier = match address {
        IpAddr::V4(_) => snapshot.kernel.ipv4.as_ref(),
        IpAddr::V6(_) => snapshot.kernel.ipv6.as_ref(),
    };
    let routes = tier.map(|tier| tier.routes.as_slice()).unwrap_or_default();
    let of_kernel = { routes.iter() }
        .filter(|route| route.subnet.contains(address))
        .max_by_key(|route| route.subnet.prefix());
    let tier = snapshot.ebpf.as_ref().ok();
    let ipv4 = tier.and_then(|tier| tier.ipv4.as_ref());
    let ipv6 = tier.and_then(|tier| tier.ipv6.as_ref());
    let pinned = match address {
        IpAddr::V4(address) => ipv4.and_then(|overlay| pinned(overlay, address)),
        IpAddr::V6(address) => ipv6.and_then(|overlay| pinned(overlay, address)),
    };
    let (subnet, vtep) = match (pinned, of_kernel) {
        (Some(pinned), _) => pinned,
        (None, Some(route)) => (route.subnet, route.vtep),
        (None, None) => return None,
    };
    let is_tunnelled = of_kernel.is_none_or(|route| route.mode != "direct");
    let other = |route: &PeerRoute| route.vtep.filter(|found| Some(*found) != vtep);
    Some(Peer {
        subnet,
        vtep,
        is_tunnelled,
        kernel_vtep: of_kernel.filter(|_| is_tunnelled).and_then(other),
        has_kernel_route: of_kernel.is_some(),
        trouble: trouble(subnet, missing),
    })
}

/// What the maps have of the node with this address.
fn pinned<F: Family>(
    overlay: &Overlay<F>,
    address: F::Address,
) -> Option<(IpNetwork, Option<IpAddr>)> {
    let (subnet, route) = { overlay.routes.iter() }
        .filter(|(subnet, _)| F::contains(**subnet, address))
        .max_by_key(|(subnet, _)| F::prefix(**subnet))?;
    let node = overlay.nodes.get(&route.node);
    let vtep = node.map(|node| F::Address::from(node.vtep).into());
    Some(((*subnet).into(), vtep))
}

fn trouble(subnet: IpNetwork, missing: &mut Vec<String>) -> Option<(String, String)> {
    let told = match probe::ask() {
        Ok(told) => told?,
        Err(error) => {
            missing.push(format!("what probes say of the peer is left out: {error}"));
            return None;
        }
    };
    let mut peers = told.peers.into_iter();
    let peer = peers.find(|peer| peer.subnet == subnet && peer.trouble)?;
    Some((peer.state, peer.meaning))
}
