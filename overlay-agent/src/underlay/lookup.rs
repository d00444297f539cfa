//! Finding an interface by one criterion.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex::Regex;

use super::{
    address::{Preferred, Rank, rank, usable},
    held::Held,
    selection::Families,
    snapshot::{HostSnapshot, InterfaceAddress, UnderlayLink, UnderlayRoute},
};
use crate::{
    go::value::parse_ip,
    model::{Family, PerFamily, V4, V6, each_family},
};

/// Why no interface was found; the texts are flannel's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnderlayError {
    #[error("error looking up interface {text}: {reason}")]
    Lookup { text: String, reason: &'static str },
    #[error("error looking up v6 interface {text}: no interface with given IPv6 found")]
    LookupIpv6 { text: String },
    #[error("could not compile the IP address regex '{pattern}': {reason}")]
    Regex { pattern: String, reason: String },
    #[error(
        "Could not match pattern {pattern} to any of the available network interfaces ({available})"
    )]
    NoMatch { pattern: String, available: String },
    #[error("failed to get ifcanreach based interface: couldn't lookup route to {ip}: {reason}")]
    Unreachable { ip: IpAddr, reason: String },
    #[error(
        "failed to get default {family}interface: unable to find default {family}route; choose an \
         interface with --iface, or give the host a default route"
    )]
    NoDefaultRoute { family: &'static str },
    #[error(
        "failed to get default {family}interface: found default {family}route but could not determine \
         interface; choose one with --iface"
    )]
    VagueDefaultRoute { family: &'static str },
    #[error(
        "v6 default route interface {ipv6} must be the same with v4 default route interface {ipv4}"
    )]
    OtherDefaultRoute { ipv6: String, ipv4: String },
    #[error("v6 interface {ipv6} must be the same with v4 interface {ipv4}")]
    OtherInterface { ipv6: String, ipv4: String },
    #[error("failed to find {family} address for interface {interface}")]
    NoAddress {
        family: &'static str,
        interface: String,
    },
    #[error(
        "address {lost} of interface {interface} is gone; {left} may be a virtual address or one of the \
         link alone and is not taken in its place. Waiting for it to be back; to use another one, name \
         it with --iface"
    )]
    OnlyLesser {
        lost: IpAddr,
        interface: String,
        left: String,
    },
    #[error("failed to determine MTU for {interface} interface")]
    NoMtu { interface: String },
    #[error(
        "Failed to find interface to use that matches the interfaces and/or regexes provided: {}",
        reasons.join("; ")
    )]
    NoCandidate { reasons: Vec<String> },
}

/// An interface, and the addresses that the criterion fixes.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub link: &'a UnderlayLink,
    pub addresses: PerFamily<Option<Ipv4Addr>, Option<Ipv6Addr>>,
}

impl<'a> Found<'a> {
    fn any(link: &'a UnderlayLink) -> Self {
        Self {
            link,
            addresses: PerFamily::default(),
        }
    }

    pub fn at(link: &'a UnderlayLink, ip: IpAddr) -> Self {
        Self {
            link,
            addresses: PerFamily {
                ipv4: V4::address(ip),
                ipv6: V6::address(ip),
            },
        }
    }
}

#[derive(Clone, Copy)]
pub struct Lookup<'a> {
    pub host: &'a HostSnapshot,
    pub families: Families,
    /// The addresses that flags name as public ones.
    pub named: &'a [IpAddr],
    pub held: &'a Held,
}

impl<'a> Lookup<'a> {
    /// `--iface`: an address or a name; empty is the default route's interface.
    pub fn iface(self, text: &str) -> Result<Found<'a>, UnderlayError> {
        if text.is_empty() {
            return self.default_route();
        }
        let Some(ip) = parse_ip(text) else {
            let named = self.host.links.iter().find(|link| link.name == text);
            return named.map(Found::any).ok_or_else(|| UnderlayError::Lookup {
                text: text.to_owned(),
                reason: "no such network interface",
            });
        };
        let served = self.families.served();
        let (wanted, as_ipv6) = match ip {
            IpAddr::V4(_) => (served.ipv4, !served.ipv4),
            IpAddr::V6(_) => (served.ipv6, served.ipv6),
        };
        let owner = self.owner_of(ip).filter(|_| wanted);
        owner.map(|link| Found::at(link, ip)).ok_or_else(|| {
            let text = text.to_owned();
            if as_ipv6 {
                UnderlayError::LookupIpv6 { text }
            } else {
                UnderlayError::Lookup {
                    text,
                    reason: "no interface with given IP found",
                }
            }
        })
    }

    /// `--iface-regex`: first by address, then by name.
    pub fn regex(self, pattern: &str) -> Result<Found<'a>, UnderlayError> {
        let regex = Regex::new(pattern).map_err(|error| UnderlayError::Regex {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        })?;
        let by_name = || {
            self.host
                .links
                .iter()
                .find(|link| regex.is_match(&link.name))
        };
        self.host
            .links
            .iter()
            .find_map(|link| self.matching_address(link, &regex))
            .or_else(|| by_name().map(Found::any))
            .ok_or_else(|| UnderlayError::NoMatch {
                pattern: pattern.to_owned(),
                available: self.available(),
            })
    }

    fn matching_address(self, link: &'a UnderlayLink, regex: &Regex) -> Option<Found<'a>> {
        let addresses = self.of_link(link).zip(self.families.served());
        let addresses = each_family!(addresses, (addresses, served) => if served {
            let mut addresses = addresses.into_iter();
            Some(addresses.find(|ip| regex.is_match(&ip.to_string()))?)
        } else {
            None
        });
        Some(Found { link, addresses })
    }

    /// The interfaces and their addresses for an error text.
    fn available(self) -> String {
        let describe = |link: &UnderlayLink| {
            let texts: PerFamily<Vec<_>> = each_family!(self.of_link(link), addresses => {
                addresses.iter().map(ToString::to_string).collect()
            });
            let texts = if self.families.served().ipv4 {
                texts.ipv4
            } else {
                texts.ipv6
            };
            format!("{}:[{}]", link.name, texts.join(" "))
        };
        self.host
            .links
            .iter()
            .map(describe)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// `--iface-can-reach`: what the kernel answered for this address. Its choice of a source address
    /// may change with every address that comes and goes.
    pub fn can_reach(self, ip: IpAddr) -> Result<Found<'a>, UnderlayError> {
        let unreachable = |reason: &str| UnderlayError::Unreachable {
            ip,
            reason: reason.to_owned(),
        };
        let reach = match &self.host.reach {
            Some(Ok(reach)) => reach,
            Some(Err(reason)) => return Err(unreachable(reason)),
            None => return Err(unreachable("the kernel was not asked")),
        };
        let link = self
            .link(reach.ifindex)
            .ok_or_else(|| unreachable("its interface is gone"))?;
        let source = reach.source.filter(|source| {
            let family = |ip: &IpAddr| ip.is_ipv4() == source.is_ipv4();
            let first = self.addresses(link, family).first().copied();
            let is_kept = first
                .is_some_and(|ip| self.named.contains(&ip) || self.held.addresses().contains(&ip));
            let is_barred = self.held.ordinary(link, family).is_some()
                && self.lesser_addresses(link, family).contains(source);
            !is_kept && !is_barred
        });
        Ok(source.map_or(Found::any(link), |source| Found::at(link, source)))
    }

    /// The interface of the first default route; with two families both must have the same.
    pub fn default_route(self) -> Result<Found<'a>, UnderlayError> {
        let ipv4 = || self.default_link(Ipv4Addr::UNSPECIFIED.into(), "");
        let ipv6 = || self.default_link(Ipv6Addr::UNSPECIFIED.into(), "v6 ");
        match self.families {
            Families::Ipv4 => ipv4().map(Found::any),
            Families::Ipv6 => ipv6().map(Found::any),
            Families::Dual => {
                let (ipv4, ipv6) = (ipv4()?, ipv6()?);
                if ipv4.ifindex == ipv6.ifindex {
                    Ok(Found::any(ipv4))
                } else {
                    Err(UnderlayError::OtherDefaultRoute {
                        ipv6: ipv6.name.clone(),
                        ipv4: ipv4.name.clone(),
                    })
                }
            }
        }
    }

    fn default_link(
        self,
        any: IpAddr,
        family: &'static str,
    ) -> Result<&'a UnderlayLink, UnderlayError> {
        let is_default = |route: &&UnderlayRoute| {
            route.destination.prefix() == 0 && route.destination.is_ipv4() == any.is_ipv4()
        };
        let Some(route) = self.host.routes.iter().find(is_default) else {
            return Err(UnderlayError::NoDefaultRoute { family });
        };
        let only = match route.interfaces[..] {
            [first, ref others @ ..] if others.iter().all(|other| *other == first) => Some(first),
            _ => None,
        };
        only.and_then(|ifindex| self.link(ifindex))
            .ok_or(UnderlayError::VagueDefaultRoute { family })
    }

    /// Fills in the addresses that are not fixed: the best one of each family of the network.
    pub fn complete(self, found: Found<'a>) -> Result<Found<'a>, UnderlayError> {
        let Found { link, addresses } = found;
        let addresses = addresses.zip(self.families.served());
        let addresses = PerFamily {
            ipv4: self.completed::<V4>(link, addresses.ipv4)?,
            ipv6: self.completed::<V6>(link, addresses.ipv6)?,
        };
        Ok(Found { link, addresses })
    }

    fn completed<F: Family>(
        self,
        link: &UnderlayLink,
        (fixed, served): (Option<F::Address>, bool),
    ) -> Result<Option<F::Address>, UnderlayError> {
        if fixed.is_some() || !served {
            return Ok(fixed);
        }
        let first = self.addresses_of_family::<F>(link).first().copied();
        first
            .map(Some)
            .ok_or_else(|| self.missing(link, F::NAME, |ip| F::address(*ip).is_some()))
    }

    fn missing(
        self,
        link: &UnderlayLink,
        family: &'static str,
        is_of_family: impl Fn(&IpAddr) -> bool,
    ) -> UnderlayError {
        let interface = link.name.clone();
        let left = self.lesser_addresses(link, &is_of_family);
        match self.held.ordinary(link, is_of_family) {
            Some(lost) if !left.is_empty() => UnderlayError::OnlyLesser {
                lost,
                interface,
                left: join(&left),
            },
            _ => UnderlayError::NoAddress { family, interface },
        }
    }

    /// The interface that has exactly this address.
    pub fn owner_of(self, ip: IpAddr) -> Option<&'a UnderlayLink> {
        self.host.links.iter().find(|link| {
            self.host
                .addresses
                .iter()
                .any(|address| address.ifindex == link.ifindex && address.ip == ip)
        })
    }

    fn link(self, ifindex: u32) -> Option<&'a UnderlayLink> {
        self.host.links.iter().find(|link| link.ifindex == ifindex)
    }

    fn of_link(self, link: &UnderlayLink) -> PerFamily<Vec<Ipv4Addr>, Vec<Ipv6Addr>> {
        PerFamily {
            ipv4: self.addresses_of_family::<V4>(link),
            ipv6: self.addresses_of_family::<V6>(link),
        }
    }

    fn addresses_of_family<F: Family>(self, link: &UnderlayLink) -> Vec<F::Address> {
        let addresses = self.addresses(link, |ip| F::address(*ip).is_some());
        addresses.into_iter().filter_map(F::address).collect()
    }

    fn addresses(self, link: &UnderlayLink, family: impl Fn(&IpAddr) -> bool) -> Vec<IpAddr> {
        let of_link: Vec<_> = self.addresses_of(link, &family).collect();
        let preferred = Preferred {
            named: self.named,
            held: &self.held.addresses(),
            ordinary_only: self.held.ordinary(link, family).is_some(),
        };
        usable(&of_link, preferred)
    }

    fn lesser_addresses(
        self,
        link: &UnderlayLink,
        family: impl Fn(&IpAddr) -> bool,
    ) -> Vec<IpAddr> {
        let all = self.addresses_of(link, family);
        all.filter(|address| rank(address) != Rank::Ordinary)
            .map(|address| address.ip)
            .collect()
    }

    fn addresses_of(
        self,
        link: &UnderlayLink,
        family: impl Fn(&IpAddr) -> bool,
    ) -> impl Iterator<Item = &'a InterfaceAddress> {
        let ifindex = link.ifindex;
        let all = self.host.addresses.iter();
        all.filter(move |address| address.ifindex == ifindex && family(&address.ip))
    }
}

fn join(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
