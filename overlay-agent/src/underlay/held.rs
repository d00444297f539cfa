//! The addresses this node has had. It keeps them while its interface has them: virtual ones come and
//! go beside them, and every change of address is one that all peers have to follow.

use std::net::IpAddr;

use super::{
    address::{Rank, rank},
    selection::Selection,
    snapshot::{HostSnapshot, UnderlayLink},
};
use crate::model::each_family;

/// What is remembered of earlier choices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Where the node belongs: returned to after a loss.
    home: Vec<IpAddr>,
    /// Those in use since one of the above was lost.
    current: Vec<IpAddr>,
    present: Option<Present>,
}

/// The choice in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    interface: String,
    addresses: Vec<(IpAddr, Rank)>,
}

impl Held {
    /// Before the first choice: `past` are the addresses of an earlier run, the first most likely.
    pub fn of_the_past(past: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            home: past.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Takes note of what was chosen.
    pub fn note(&mut self, host: &HostSnapshot, selection: &Selection) {
        let chosen = each_family!(selection.addresses, addresses => {
            addresses.map(|addresses| IpAddr::from(addresses.local))
        });
        let mut addresses = self.other_families(selection);
        for ip in chosen.into_iter().flatten() {
            let is_same_family = |other: &IpAddr| other.is_ipv4() == ip.is_ipv4();
            self.current.retain(|other| !is_same_family(other));
            if !self.home.iter().any(is_same_family) {
                self.home.push(ip);
            } else if !self.home.contains(&ip) {
                self.current.push(ip);
            }
            let found = host
                .addresses
                .iter()
                .find(|address| address.ifindex == selection.ifindex && address.ip == ip);
            addresses.push((ip, found.map_or(Rank::Ordinary, rank)));
        }
        self.present = Some(Present {
            interface: selection.name.clone(),
            addresses,
        });
    }

    /// What stays in force of a family that the choice does not have.
    fn other_families(&self, selection: &Selection) -> Vec<(IpAddr, Rank)> {
        let chosen = each_family!(selection.addresses, addresses => addresses.is_some());
        let present = self.present.iter();
        present
            .filter(|present| present.interface == selection.name)
            .flat_map(|present| &present.addresses)
            .filter(|(ip, _)| match ip {
                IpAddr::V4(_) => !chosen.ipv4,
                IpAddr::V6(_) => !chosen.ipv6,
            })
            .copied()
            .collect()
    }

    /// The interface in use.
    pub fn interface(&self) -> Option<&str> {
        self.present.as_ref().map(|present| &*present.interface)
    }

    /// Home first, then what is in use.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [&self.home[..], &self.current].concat()
    }

    /// The address in use on this interface, of one family, if it is an ordinary one: then none of lower
    /// rank takes its place, also while it is gone.
    pub fn ordinary(
        &self,
        link: &UnderlayLink,
        family: impl Fn(&IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let present = self.present.as_ref()?;
        let in_use = present.addresses.iter().find(|(ip, _)| family(ip));
        in_use
            .filter(|(_, rank)| *rank == Rank::Ordinary && present.interface == link.name)
            .map(|(ip, _)| *ip)
    }
}
