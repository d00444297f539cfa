//! Which leases a backend can reach. As in flannel, nodes with another backend are ignored, which
//! is what keeps a cluster apart while its backend is being changed.

use std::{collections::BTreeMap, net::Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use overlay_common::addr::MacAddr;
use thiserror::Error;

use crate::model::{Backend, Family, LeaseView, Peer, PeerLease, V4, V6, VxlanData};

/// Why no peer can be made of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    #[error("the node's backend is {theirs:?}, this node's is {ours}")]
    OtherBackend { theirs: String, ours: &'static str },
    #[error("the lease has no usable VtepMAC")]
    NoVtepMac,
    #[error("the lease has no {family} subnet, or no address to reach it at")]
    NoAddress { family: &'static str },
}

impl LeaseView {
    /// The peers a backend can reach over IPv4.
    pub fn usable_peers(&self, backend: &Backend) -> BTreeMap<Ipv4Network, Peer> {
        let peers = self
            .peers
            .values()
            .filter_map(|lease| lease.usable(backend).ok());
        peers.map(|peer| (peer.subnet, peer)).collect()
    }

    /// The peers a backend can reach over IPv6.
    pub fn usable_peers6(&self, backend: &Backend) -> BTreeMap<Ipv6Network, Peer<V6>> {
        let peers = self
            .peers
            .values()
            .filter_map(|lease| lease.usable6(backend).ok());
        peers.map(|peer| (peer.subnet, peer)).collect()
    }
}

impl PeerLease {
    /// The IPv4 peer of this lease, if the backend can reach it. The alloc backend reaches nobody.
    pub fn usable(&self, backend: &Backend) -> Result<Peer, Unusable> {
        let address = Some(self.attrs.public_ip).filter(|address| !address.is_unspecified());
        let data = self.attrs.vxlan_data();
        self.side::<V4>(backend, self.key.ipv4(), address, data)
    }

    /// The IPv6 peer.
    pub fn usable6(&self, backend: &Backend) -> Result<Peer<V6>, Unusable> {
        let no_host = |address: &Ipv6Addr| address.is_unspecified() || address.is_multicast();
        let address = self.attrs.public_ipv6.filter(|address| !no_host(address));
        let data = self.attrs.vxlan_v6_data();
        self.side::<V6>(backend, self.key.ipv6(), address, data)
    }

    fn side<F: Family>(
        &self,
        backend: &Backend,
        subnet: Option<F::Network>,
        address: Option<F::Address>,
        data: Option<VxlanData>,
    ) -> Result<Peer<F>, Unusable> {
        let ours = match backend {
            Backend::Vxlan(_) => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Alloc => "alloc",
        };
        if self.attrs.backend_type != ours {
            return Err(Unusable::OtherBackend {
                theirs: self.attrs.backend_type.clone(),
                ours,
            });
        }
        let no_address = Unusable::NoAddress { family: F::NAME };
        let (subnet, public_ip) = subnet.zip(address).ok_or(no_address)?;
        let (vtep_mac, zero_checksum) = match backend {
            Backend::Vxlan(_) => {
                let usable = |mac: MacAddr| !mac.is_zero() && !mac.is_multicast();
                let data = data.filter(|data| usable(data.vtep_mac));
                let data = data.ok_or(Unusable::NoVtepMac)?;
                (data.vtep_mac, data.zero_checksum)
            }
            Backend::HostGw | Backend::Alloc => (MacAddr::ZERO, false),
        };
        Ok(Peer {
            subnet,
            public_ip,
            vtep_mac,
            zero_checksum: zero_checksum && F::CHECKSUM_IS_REQUIRED,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{LeaseAttrs, LeaseKey, VxlanBackend};

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
    const VXLAN: Backend = Backend::Vxlan(VxlanBackend {
        vni: 1,
        port: None,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
    });

    fn lease(attrs: LeaseAttrs) -> PeerLease {
        PeerLease {
            key: LeaseKey::parse("10.5.2.0-24").unwrap(),
            attrs,
        }
    }

    #[test]
    fn only_nodes_of_the_same_backend_are_peers() {
        let mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
        let vxlan = lease(LeaseAttrs::vxlan(NODE, 1, mac));
        let host_gw = lease(LeaseAttrs::host_gw(NODE));
        assert_eq!(vxlan.usable(&VXLAN).unwrap().vtep_mac, mac);
        assert_eq!(host_gw.usable(&Backend::HostGw).unwrap().public_ip, NODE);
        for (lease, backend) in [
            (&vxlan, Backend::HostGw),
            (&host_gw, VXLAN),
            (&vxlan, Backend::Alloc),
        ] {
            let refused = lease.usable(&backend);
            assert!(
                matches!(refused, Err(Unusable::OtherBackend { .. })),
                "{refused:?}"
            );
        }
        let alloc = lease(LeaseAttrs::alloc(NODE));
        assert!(alloc.usable(&VXLAN).is_err());
        assert!(alloc.usable(&Backend::Alloc).is_err());
    }

    #[test]
    fn a_vxlan_node_without_a_unicast_mac_is_no_peer() {
        for mac in [MacAddr::ZERO, MacAddr::new([0xff; 6])] {
            let lease = lease(LeaseAttrs::vxlan(NODE, 1, mac));
            assert_eq!(lease.usable(&VXLAN), Err(Unusable::NoVtepMac));
        }
        let typed = lease(LeaseAttrs {
            backend_type: "vxlan".to_owned(),
            ..LeaseAttrs::alloc(NODE)
        });
        assert_eq!(typed.usable(&VXLAN), Err(Unusable::NoVtepMac));
    }

    #[test]
    fn a_word_about_ipv6_checksums_counts_for_tunnels_over_ipv6_only() {
        let says = VxlanData {
            zero_checksum: true,
            ..VxlanData::new(1, MacAddr::new([2, 0, 0, 0, 6, 2]))
        };
        let address6 = "fd00::2".parse().unwrap();
        let mut lease = PeerLease {
            key: LeaseKey::parse("10.5.2.0-24&fd00:10:5:2::-64").unwrap(),
            attrs: LeaseAttrs::vxlan(NODE, 1, says.vtep_mac).with_ipv6(address6, Some(says)),
        };
        lease.attrs.backend_data = lease.attrs.backend_v6_data.clone();
        assert!(lease.usable6(&VXLAN).unwrap().zero_checksum);
        assert!(!lease.usable(&VXLAN).unwrap().zero_checksum);
        lease.attrs.backend_type = "host-gw".to_owned();
        assert!(!lease.usable6(&Backend::HostGw).unwrap().zero_checksum);
    }

    #[test]
    fn a_dual_stack_node_is_a_peer_in_each_family_and_others_only_in_theirs() {
        let (mac, mac6) = (
            MacAddr::new([2, 0, 0, 0, 0, 2]),
            MacAddr::new([2, 0, 0, 0, 6, 2]),
        );
        let address6 = "fd00::2".parse().unwrap();
        let dual = PeerLease {
            key: LeaseKey::parse("10.5.2.0-24&fd00:10:5:2::-64").unwrap(),
            attrs: LeaseAttrs::vxlan(NODE, 1, mac)
                .with_ipv6(address6, Some(VxlanData::new(1, mac6))),
        };
        assert_eq!(dual.usable(&VXLAN).unwrap().vtep_mac, mac);
        let peer6 = dual.usable6(&VXLAN).unwrap();
        assert_eq!((peer6.vtep_mac, peer6.public_ip), (mac6, address6));
        let ipv4 = lease(LeaseAttrs::vxlan(NODE, 1, mac));
        assert_eq!(
            ipv4.usable6(&VXLAN),
            Err(Unusable::NoAddress { family: "IPv6" })
        );
        let ipv6 = PeerLease {
            key: LeaseKey::parse("0.0.0.0-0&fd00:10:5:2::-64").unwrap(),
            attrs: LeaseAttrs {
                public_ip: Ipv4Addr::UNSPECIFIED,
                ..dual.attrs
            },
        };
        assert_eq!(
            ipv6.usable(&VXLAN),
            Err(Unusable::NoAddress { family: "IPv4" })
        );
        assert!(ipv6.usable6(&VXLAN).is_ok());
    }
}
