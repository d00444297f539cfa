//! Which leases a backend can reach. As in flannel, nodes with another backend are ignored, which
//! is what keeps a cluster apart while its backend is being changed.

use std::collections::BTreeMap;

use ipnetwork::Ipv4Network;
use overlay_common::addr::MacAddr;
use thiserror::Error;

use super::view::{LeaseView, PeerLease};
use crate::model::{Backend, Peer};

/// Why no peer can be made of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    #[error("the node's backend is {theirs:?}, this node's is {ours}")]
    OtherBackend { theirs: String, ours: &'static str },
    #[error("the lease has no usable VtepMAC")]
    NoVtepMac,
}

impl LeaseView {
    /// The peers a backend can reach.
    pub fn usable_peers(&self, backend: &Backend) -> BTreeMap<Ipv4Network, Peer> {
        let usable = |(subnet, lease): (&Ipv4Network, &PeerLease)| {
            let peer = lease.usable(backend).ok()?;
            Some((*subnet, peer))
        };
        self.peers.iter().filter_map(usable).collect()
    }
}

impl PeerLease {
    /// The peer of this lease, if the backend can reach it. The alloc backend reaches nobody.
    pub fn usable(&self, backend: &Backend) -> Result<Peer, Unusable> {
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
        let vtep_mac = match backend {
            Backend::Vxlan(_) => {
                let data = self.attrs.vxlan_data();
                let mac = data.map(|data| data.vtep_mac);
                let usable = |mac: &MacAddr| !mac.is_zero() && !mac.is_multicast();
                mac.filter(usable).ok_or(Unusable::NoVtepMac)?
            }
            Backend::HostGw | Backend::Alloc => MacAddr::ZERO,
        };
        Ok(Peer {
            subnet: self.key.subnet,
            public_ip: self.attrs.public_ip,
            vtep_mac,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        lease::{LeaseAttrs, LeaseKey},
        model::VxlanBackend,
    };

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
}
