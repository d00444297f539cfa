//! Routes only: every peer must be on-link.

use std::net::Ipv4Addr;

use super::{Annotated, BackendError, ChangedKeys, Kind, Parsed};
use crate::model::{Direct, Family, Forwarding, LeaseAttrs, Underlay};

/// The host-gw backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostGw;

impl Kind for HostGw {
    const TYPE: &'static str = "host-gw";

    const ANNOTATED_V6: Annotated = Annotated::Always;

    fn parse(_: &str, _: bool) -> Parsed<Self> {
        Ok((Self, Vec::new()))
    }

    fn reload(&self, _: &Self, _: &mut ChangedKeys) -> Self {
        *self
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding {
            direct: Direct::Always,
            may_be_fast: true,
            ..Forwarding::NONE
        }
    }

    /// Peers route to the address that the lease shows.
    fn check<F: Family>(&self, underlay: &Underlay<F>) -> Result<(), BackendError> {
        if underlay.public_ip == underlay.address {
            Ok(())
        } else {
            Err(BackendError::Nat {
                backend: Self::TYPE,
            })
        }
    }
}

impl LeaseAttrs {
    /// What a node with this backend says in an IPv4 cluster.
    pub fn host_gw(public_ip: Ipv4Addr) -> Self {
        Self {
            backend_type: HostGw::LEASE_TYPE.to_owned(),
            ..Self::alloc(public_ip)
        }
    }
}
