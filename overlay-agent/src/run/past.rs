//! What is known of an earlier life of this node when it starts: which address it had, and which VTEP
//! MAC addresses its peers know. Pure.

use std::net::IpAddr;

use overlay_common::addr::MacAddr;

use crate::{
    model::{Backend, Family as _, LeaseAttrs, V4, V6},
    netlink::{Link, LinkKind},
    underlay::{Held, HostSnapshot, Selection},
};

/// The VTEP MAC addresses that peers know. A device that has to be created, after a reboot say, takes
/// its own again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedMacs {
    pub ipv4: Option<MacAddr>,
    pub ipv6: Option<MacAddr>,
}

pub fn recorded_macs(known: &[LeaseAttrs], selection: &Selection) -> RecordedMacs {
    let ipv4 = selection
        .ipv4
        .map(|addresses| IpAddr::from(addresses.public));
    let ipv6 = selection
        .ipv6
        .map(|addresses| IpAddr::from(addresses.public));
    let Some(node_ip) = ipv4.or(ipv6) else {
        return RecordedMacs::default();
    };
    let own = || known.iter().filter(|attrs| attrs.node_ip() == node_ip);
    RecordedMacs {
        ipv4: own().find_map(|attrs| attrs.vxlan_data().map(|data| data.vtep_mac)),
        ipv6: own().find_map(|attrs| attrs.vxlan_v6_data().map(|data| data.vtep_mac)),
    }
}

/// The addresses the node had: those of its devices, then those of this host that a lease advertises,
/// for a host that was booted has no devices. Secondary addresses do not count there: a virtual one
/// may have been advertised by another node.
pub fn held_addresses(
    links: &[Link],
    backend: &Backend,
    host: &HostSnapshot,
    known: &[LeaseAttrs],
) -> Held {
    let device = |name: String| {
        let link = links.iter().find(|link| link.name == name)?;
        match &link.kind {
            LinkKind::Vxlan(vxlan) => vxlan.local,
            _ => None,
        }
    };
    let devices = match backend {
        Backend::Vxlan(vxlan) => [
            device(V4::device_name(vxlan.vni)),
            device(V6::device_name(vxlan.vni)),
        ],
        Backend::HostGw | Backend::Alloc => [None; 2],
    };
    let is_advertised = |ip: &IpAddr| {
        known.iter().any(|attrs| match *ip {
            IpAddr::V4(ip) => attrs.public_ip == ip,
            IpAddr::V6(ip) => attrs.public_ipv6 == Some(ip),
        })
    };
    let addresses = host.addresses.iter();
    let advertised = addresses
        .filter(|address| !address.flags.temporary)
        .map(|address| address.ip)
        .filter(is_advertised);
    Held::of_the_past(devices.into_iter().flatten().chain(advertised))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        model::VxlanBackend,
        netlink::VxlanLink,
        underlay::{AddressFlags, Addresses, InterfaceAddress},
    };

    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const BACKEND: Backend = Backend::Vxlan(VxlanBackend {
        vni: 1,
        port: None,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
    });

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    /// One lease for each address.
    fn leases(addresses: &[u8]) -> Vec<LeaseAttrs> {
        let lease = |&last| LeaseAttrs::vxlan(ip(last), 1, MAC);
        addresses.iter().map(lease).collect()
    }

    fn host(addresses: &[(u8, bool)]) -> HostSnapshot {
        let address = |&(last, secondary)| InterfaceAddress {
            ifindex: 2,
            ip: ip(last).into(),
            flags: AddressFlags {
                temporary: secondary,
                ..AddressFlags::default()
            },
        };
        HostSnapshot {
            addresses: addresses.iter().map(address).collect(),
            ..HostSnapshot::default()
        }
    }

    #[test]
    fn a_device_tells_which_address_the_node_had_before_a_lease_does() {
        let device = Link {
            ifindex: 7,
            name: "flannel.1".to_owned(),
            kind: LinkKind::Vxlan(VxlanLink {
                local: Some(ip(3).into()),
                ..VxlanLink::default()
            }),
            mac: Some(MAC),
            mtu: 1450,
            up: true,
            master: None,
        };
        let host = host(&[(1, false), (2, false), (3, false)]);
        let held = held_addresses(&[device], &BACKEND, &host, &leases(&[2, 9]));
        assert_eq!(held, Held::of_the_past([ip(3).into(), ip(2).into()]));
    }

    #[test]
    fn a_secondary_address_that_a_lease_advertises_may_be_another_nodes() {
        let host = host(&[(1, false), (2, true)]);
        let held = held_addresses(&[], &BACKEND, &host, &leases(&[2]));
        assert_eq!(held, Held::default());
    }

    #[test]
    fn the_mac_address_is_that_of_the_lease_with_the_nodes_address() {
        let selection = |last| Selection {
            ifindex: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            hardware: false,
            ethernet: true,
            ipv4: Some(Addresses {
                local: ip(last),
                public: ip(last),
            }),
            ipv6: None,
            notes: Vec::new(),
        };
        let leases = leases(&[1]);
        assert_eq!(recorded_macs(&leases, &selection(1)).ipv4, Some(MAC));
        assert_eq!(
            recorded_macs(&leases, &selection(2)),
            RecordedMacs::default()
        );
    }
}
