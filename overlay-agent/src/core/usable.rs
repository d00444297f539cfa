//! Which leases a backend can reach. As in flannel, nodes with another backend are ignored, which
//! is what keeps a cluster apart while its backend is being changed.

use std::{collections::BTreeMap, marker::PhantomData, net::Ipv6Addr};

use thiserror::Error;

use crate::{
    backend::Backend,
    model::{ByFamily, Family, LeaseView, Peer, PeerLease, PerFamily, V4, V6},
};

/// Why no peer can be made of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    #[error("the node's backend is {theirs:?}, this node's is {ours}")]
    OtherBackend { theirs: String, ours: &'static str },
    #[error("the lease does not say what the {backend} backend needs to know of a node")]
    NoData { backend: &'static str },
    #[error("the lease has no {family} subnet, or no address to reach it at")]
    NoAddress { family: &'static str },
}

/// What a lease says of one family.
struct Said<'a, F: Family> {
    subnet: Option<F::Network>,
    address: Option<F::Address>,
    data: Option<&'a str>,
}

struct SaidOf<'a>(PhantomData<&'a str>);

impl<'a> ByFamily for SaidOf<'a> {
    type Of<F: Family> = Said<'a, F>;
}

impl LeaseView {
    /// The leases of the nodes that have this backend.
    pub fn of_backend(&self, backend: &Backend) -> Vec<PeerLease> {
        let leases = self.peers.values();
        let is_alike = |lease: &&PeerLease| lease.attrs.backend_type == backend.lease_type();
        leases.filter(is_alike).cloned().collect()
    }

    /// The peers a backend can reach.
    pub fn usable_peers<F: Family>(&self, backend: &Backend) -> BTreeMap<F::Network, Peer<F>> {
        let leases = self.peers.values();
        let peers = leases.filter_map(|lease| lease.usable::<F>(backend).ok());
        peers.map(|peer| (peer.subnet, peer)).collect()
    }

    /// The one of them at a subnet.
    pub fn usable_peer<F: Family>(&self, subnet: F::Network, backend: &Backend) -> Option<Peer<F>> {
        let leases = self.peers.naming::<F>(subnet);
        leases.filter_map(|lease| lease.usable(backend).ok()).last()
    }
}

impl PeerLease {
    /// The family's peer of this lease, if the backend can reach it. The alloc backend reaches nobody.
    pub fn usable<F: Family>(&self, backend: &Backend) -> Result<Peer<F>, Unusable> {
        if self.attrs.backend_type != backend.lease_type() {
            return Err(Unusable::OtherBackend {
                theirs: self.attrs.backend_type.clone(),
                ours: backend.name(),
            });
        }
        let said = F::pick::<SaidOf<'_>>(self.said());
        let no_address = Unusable::NoAddress { family: F::NAME };
        let (subnet, public_ip) = said.subnet.zip(said.address).ok_or(no_address)?;
        let peer = backend.peer(subnet, public_ip, said.data);
        peer.ok_or(Unusable::NoData {
            backend: backend.name(),
        })
    }

    fn said(&self) -> PerFamily<Said<'_, V4>, Said<'_, V6>> {
        let PerFamily { ipv4, ipv6 } = self.key.subnets();
        let attrs = &self.attrs;
        let is_host = |address: &Ipv6Addr| !address.is_unspecified() && !address.is_multicast();
        PerFamily {
            ipv4: Said {
                subnet: ipv4,
                address: Some(attrs.public_ip).filter(|address| !address.is_unspecified()),
                data: attrs.backend_data.as_deref(),
            },
            ipv6: Said {
                subnet: ipv6,
                address: attrs.public_ipv6.filter(is_host),
                data: attrs.backend_v6_data.as_deref(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use overlay_common::addr::MacAddr;

    use super::*;
    use crate::{
        backend::{Alloc, HostGw, Vxlan, VxlanData},
        model::{LeaseAttrs, LeaseKey, VxlanEnd},
    };

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
    const VXLAN: Backend = Backend::Vxlan(Vxlan::DEFAULT);
    const HOST_GW: Backend = Backend::HostGw(HostGw);
    const ALLOC: Backend = Backend::Alloc(Alloc);

    const DUAL: &str = "10.5.2.0-24&fd00:10:5:2::-64";

    fn lease(attrs: LeaseAttrs) -> PeerLease {
        lease_of("10.5.2.0-24", attrs)
    }

    fn lease_of(key: &str, attrs: LeaseAttrs) -> PeerLease {
        PeerLease {
            key: LeaseKey::parse(key).unwrap(),
            attrs: Arc::new(attrs),
        }
    }

    fn end<F: Family>(peer: &Peer<F>) -> VxlanEnd {
        peer.vxlan.unwrap()
    }

    #[test]
    fn only_nodes_of_the_same_backend_are_peers() {
        let mac = MacAddr::new([2, 0, 0, 0, 0, 2]);
        let vxlan = lease(LeaseAttrs::vxlan(NODE, 1, mac));
        let host_gw = lease(LeaseAttrs::host_gw(NODE));
        assert_eq!(end(&vxlan.usable::<V4>(&VXLAN).unwrap()).mac, mac);
        assert_eq!(host_gw.usable::<V4>(&HOST_GW).unwrap().public_ip, NODE);
        for (lease, backend) in [(&vxlan, HOST_GW), (&host_gw, VXLAN), (&vxlan, ALLOC)] {
            let refused = lease.usable::<V4>(&backend);
            assert!(
                matches!(refused, Err(Unusable::OtherBackend { .. })),
                "{refused:?}"
            );
        }
        let alloc = lease(LeaseAttrs::alloc(NODE));
        assert!(alloc.usable::<V4>(&VXLAN).is_err());
        assert!(alloc.usable::<V4>(&ALLOC).is_err());
    }

    #[test]
    fn a_vxlan_node_without_a_unicast_mac_is_no_peer() {
        let no_data = Err(Unusable::NoData { backend: "vxlan" });
        for mac in [MacAddr::ZERO, MacAddr::new([0xff; 6])] {
            let lease = lease(LeaseAttrs::vxlan(NODE, 1, mac));
            assert_eq!(lease.usable::<V4>(&VXLAN), no_data);
        }
        let typed = lease(LeaseAttrs {
            backend_type: "vxlan".to_owned(),
            ..LeaseAttrs::alloc(NODE)
        });
        assert_eq!(typed.usable::<V4>(&VXLAN), no_data);
    }

    #[test]
    fn a_word_about_ipv6_checksums_counts_for_tunnels_over_ipv6_only() {
        let says = VxlanData {
            zero_checksum: true,
            ..VxlanData::new(1, MacAddr::new([2, 0, 0, 0, 6, 2]))
        };
        let address6 = "fd00::2".parse().unwrap();
        let mut attrs =
            LeaseAttrs::vxlan(NODE, 1, says.vtep_mac).with_ipv6(address6, Some(says.encode()));
        attrs.backend_data = attrs.backend_v6_data.clone();
        let lease = lease_of(DUAL, attrs.clone());
        assert!(end(&lease.usable::<V6>(&VXLAN).unwrap()).zero_checksum);
        assert!(!end(&lease.usable::<V4>(&VXLAN).unwrap()).zero_checksum);
        attrs.backend_type = "host-gw".to_owned();
        let lease = lease_of(DUAL, attrs);
        assert_eq!(lease.usable::<V6>(&HOST_GW).unwrap().vxlan, None);
    }

    #[test]
    fn a_dual_stack_node_is_a_peer_in_each_family_and_others_only_in_theirs() {
        let (mac, mac6) = (
            MacAddr::new([2, 0, 0, 0, 0, 2]),
            MacAddr::new([2, 0, 0, 0, 6, 2]),
        );
        let address6 = "fd00::2".parse().unwrap();
        let attrs = LeaseAttrs::vxlan(NODE, 1, mac)
            .with_ipv6(address6, Some(VxlanData::new(1, mac6).encode()));
        let dual = lease_of(DUAL, attrs.clone());
        assert_eq!(end(&dual.usable::<V4>(&VXLAN).unwrap()).mac, mac);
        let peer6 = dual.usable::<V6>(&VXLAN).unwrap();
        assert_eq!((end(&peer6).mac, peer6.public_ip), (mac6, address6));
        let ipv4 = lease(LeaseAttrs::vxlan(NODE, 1, mac));
        assert_eq!(
            ipv4.usable::<V6>(&VXLAN),
            Err(Unusable::NoAddress { family: "IPv6" })
        );
        let attrs = LeaseAttrs {
            public_ip: Ipv4Addr::UNSPECIFIED,
            ..attrs
        };
        let ipv6 = lease_of("0.0.0.0-0&fd00:10:5:2::-64", attrs);
        assert_eq!(
            ipv6.usable::<V4>(&VXLAN),
            Err(Unusable::NoAddress { family: "IPv4" })
        );
        assert!(ipv6.usable::<V6>(&VXLAN).is_ok());
    }
}
