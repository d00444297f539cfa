//! Which of an interface's addresses are usable, and in which order.

use std::net::IpAddr;

use super::snapshot::InterfaceAddress;

/// What the kernel says about an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressFlags {
    pub permanent: bool,
    /// IPv6: a temporary one; IPv4: a secondary one. The kernel uses one bit for both.
    pub temporary: bool,
    pub deprecated: bool,
}

/// Global before link-local, permanent before others, non-temporary before temporary; otherwise as
/// the kernel lists them. Deprecated addresses, and those that other nodes cannot reach, are left
/// out.
pub fn usable(addresses: &[&InterfaceAddress]) -> Vec<IpAddr> {
    let mut usable: Vec<_> = addresses
        .iter()
        .filter(|address| !address.flags.deprecated)
        .filter(|address| is_global_unicast(address.ip) || is_link_local(address.ip))
        .collect();
    usable.sort_by_key(|address| {
        (
            is_link_local(address.ip),
            !address.flags.permanent,
            address.flags.temporary,
        )
    });
    usable.into_iter().map(|address| address.ip).collect()
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
