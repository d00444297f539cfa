//! What is known of an earlier life of this node when it starts: which address it had, and what its
//! peers know of its devices. Pure.

use std::net::IpAddr;

use crate::{
    backend::{self, Backend},
    model::{Family, LeaseAttrs, PerFamily, V4, V6, each_family},
    netlink::Link,
    underlay::{Held, HostSnapshot, Selection},
};

/// What peers know of the node. A device that has to be created, after a reboot say, takes its MAC
/// address again.
pub fn recorded(known: &[LeaseAttrs], selection: &Selection) -> PerFamily<Vec<String>> {
    let public = each_family!(selection.addresses, addresses => {
        addresses.map(|addresses| IpAddr::from(addresses.public))
    });
    let Some(node_ip) = public.into_iter().flatten().next() else {
        return PerFamily::default();
    };
    let own = || known.iter().filter(|attrs| attrs.node_ip() == node_ip);
    PerFamily {
        ipv4: own()
            .filter_map(|attrs| attrs.backend_data.clone())
            .collect(),
        ipv6: own()
            .filter_map(|attrs| attrs.backend_v6_data.clone())
            .collect(),
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
    fn local<F: Family>(links: &[Link], backend: &Backend) -> Option<IpAddr> {
        let name = backend.device_name::<F>()?;
        let link = links.iter().find(|link| link.name == name)?;
        let (_, device) = backend::recognise::<F>(link)?;
        device.local
    }
    let devices = PerFamily {
        ipv4: local::<V4>(links, backend),
        ipv6: local::<V6>(links, backend),
    };
    let devices = devices.into_iter().flatten();
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
    Held::of_the_past(devices.chain(advertised))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use overlay_common::addr::MacAddr;

    use super::*;
    use crate::{
        backend::{Vxlan, VxlanData},
        netlink::{LinkKind, VxlanLink},
        underlay::{AddressFlags, Addresses, InterfaceAddress},
    };

    const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const BACKEND: Backend = Backend::Vxlan(Vxlan::DEFAULT);

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
                vni: 1,
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
            addresses: PerFamily {
                ipv4: Some(Addresses {
                    local: ip(last),
                    public: ip(last),
                }),
                ipv6: None,
            },
            notes: Vec::new(),
        };
        let leases = leases(&[1]);
        let recorded = |last| recorded(&leases, &selection(last)).ipv4;
        assert_eq!(recorded(1), [VxlanData::new(1, MAC).encode()]);
        assert_eq!(recorded(2), Vec::<String>::new());
    }
}
