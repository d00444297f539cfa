//! The interface and addresses that were chosen.

use crate::{
    config::NetworkConfig,
    model::{Family, PerFamily, Underlay, V4, V6, each_family},
};

/// The address families of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Ipv4,
    Ipv6,
    Dual,
}

/// The chosen interface and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub ifindex: u32,
    pub name: String,
    pub mtu: u32,
    /// See [`Underlay::hardware`].
    pub hardware: bool,
    /// See [`Underlay::ethernet`].
    pub ethernet: bool,
    /// Of the families that the network has.
    pub addresses: PerFamily<Option<Addresses>, Option<Addresses<V6>>>,
    /// What was tried in vain before, and what may surprise; to be logged.
    pub notes: Vec<String>,
}

/// This node's addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses<F: Family = V4> {
    /// Source of tunnel packets: an address of the interface.
    pub local: F::Address,
    /// What the lease advertises.
    pub public: F::Address,
}

impl Families {
    pub fn of(network: &NetworkConfig) -> Self {
        match (&network.pools.ipv4, &network.pools.ipv6) {
            (Some(_), Some(_)) => Self::Dual,
            (None, Some(_)) => Self::Ipv6,
            (_, None) => Self::Ipv4,
        }
    }

    pub fn served(self) -> PerFamily<bool> {
        PerFamily {
            ipv4: self != Self::Ipv6,
            ipv6: self != Self::Ipv4,
        }
    }
}

impl Selection {
    /// As the tiers take it.
    pub fn underlays(&self) -> PerFamily<Option<Underlay>, Option<Underlay<V6>>> {
        each_family!(self.addresses, addresses => addresses.map(|its| self.underlay(its)))
    }

    fn underlay<F: Family>(&self, addresses: Addresses<F>) -> Underlay<F> {
        Underlay {
            ifindex: self.ifindex,
            name: self.name.clone(),
            mtu: self.mtu,
            hardware: self.hardware,
            ethernet: self.ethernet,
            address: addresses.local,
            public_ip: addresses.public,
        }
    }
}
