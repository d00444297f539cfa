//! The interface and addresses that were chosen.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    config::NetworkConfig,
    model::{Family, Underlay, V6},
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
    /// Present if the network has IPv4.
    pub ipv4: Option<Addresses<Ipv4Addr>>,
    /// Present if the network has IPv6.
    pub ipv6: Option<Addresses<Ipv6Addr>>,
    /// What was tried in vain before, and what may surprise; to be logged.
    pub notes: Vec<String>,
}

/// This node's addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses<A> {
    /// Source of tunnel packets: an address of the interface.
    pub local: A,
    /// What the lease advertises.
    pub public: A,
}

impl Families {
    pub fn of(network: &NetworkConfig) -> Self {
        match (&network.ipv4, &network.ipv6) {
            (Some(_), Some(_)) => Self::Dual,
            (None, Some(_)) => Self::Ipv6,
            (_, None) => Self::Ipv4,
        }
    }

    pub fn has_ipv4(self) -> bool {
        self != Self::Ipv6
    }

    pub fn has_ipv6(self) -> bool {
        self != Self::Ipv4
    }
}

impl Selection {
    /// The IPv4 side, as the tiers take it.
    pub fn ipv4(&self) -> Option<Underlay> {
        self.ipv4.map(|addresses| self.side(addresses))
    }

    /// The IPv6 side.
    pub fn ipv6(&self) -> Option<Underlay<V6>> {
        self.ipv6.map(|addresses| self.side(addresses))
    }

    fn side<F: Family>(&self, addresses: Addresses<F::Address>) -> Underlay<F> {
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
