//! Leases a subnet and programs nothing.

use super::{ChangedKeys, Kind, Parsed};
use crate::model::{Family, Forwarding, Peer};

/// The alloc backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alloc;

impl Kind for Alloc {
    const TYPE: &'static str = "alloc";
    const LEASE_TYPE: &'static str = "";

    fn parse(_: &str, _: bool) -> Parsed<Self> {
        Ok((Self, Vec::new()))
    }

    fn reload(&self, _: &Self, _: &mut ChangedKeys) -> Self {
        *self
    }

    fn forwarding<F: Family>(&self) -> Forwarding {
        Forwarding::NONE
    }

    /// It reaches nobody.
    fn peer<F: Family>(&self, _: F::Network, _: F::Address, _: Option<&str>) -> Option<Peer<F>> {
        None
    }
}
