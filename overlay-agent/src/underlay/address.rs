//! Which of an interface's addresses are usable, and in which order.

use std::net::IpAddr;

use super::snapshot::InterfaceAddress;

/// How far an address can be trusted to be the node's own. Better ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Ordinary,
    /// Of the shape in which keepalived, kube-vip and the like put a service's address on whichever
    /// node serves it: the address alone, without a network. Some clouds give nodes no other.
    Virtual,
    LinkLocal,
}

/// Addresses that come before those the kernel's flags would choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preferred<'a> {
    /// By flags of this agent: whatever their rank.
    pub named: &'a [IpAddr],
    /// By the past of this node, the first most: among those of their rank.
    pub held: &'a [IpAddr],
    /// Only [ordinary](Rank::Ordinary) ones count, and what a flag names.
    pub ordinary_only: bool,
}

/// In the order of their ranks; those of one rank permanent before others, primary before secondary
/// and temporary ones, otherwise as the kernel lists them. Left out are those that other nodes cannot
/// reach, and deprecated ones nobody prefers.
pub fn usable(addresses: &[&InterfaceAddress], preferred: Preferred<'_>) -> Vec<IpAddr> {
    let Preferred {
        named,
        held,
        ordinary_only,
    } = preferred;
    let mut usable: Vec<_> = addresses
        .iter()
        .filter(|address| is_global_unicast(address.ip) || is_link_local(address.ip))
        .filter(|address| {
            named.contains(&address.ip)
                || ((!address.flags.deprecated || held.contains(&address.ip))
                    && !(ordinary_only && rank(address) != Rank::Ordinary))
        })
        .collect();
    usable.sort_by_key(|address| {
        let place = |among: &[IpAddr]| among.iter().position(|ip| *ip == address.ip);
        (
            place(named).is_none(),
            rank(address),
            place(held).unwrap_or(held.len()),
            address.flags.temporary,
            !address.flags.permanent,
        )
    });
    usable.into_iter().map(|address| address.ip).collect()
}

/// An IPv6 address alone that has a lifetime is what DHCPv6 gives.
pub fn rank(address: &InterfaceAddress) -> Rank {
    let flags = address.flags;
    if is_link_local(address.ip) {
        Rank::LinkLocal
    } else if flags.host && (address.ip.is_ipv4() || flags.permanent) {
        Rank::Virtual
    } else {
        Rank::Ordinary
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Go's `IsGlobalUnicast`: private addresses count.
fn is_global_unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(broadcast
        || ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || is_link_local(ip))
}
