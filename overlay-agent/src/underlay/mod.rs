//! Which interface carries tunnel packets, which address they leave with, and which address the other
//! nodes are told. flannel's rules; the advertised address never decides what the tunnel's own
//! address is.

mod address;
mod held;
mod lookup;
mod selection;
mod snapshot;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use self::lookup::{Found, Lookup};
pub use self::{
    held::Held,
    lookup::UnderlayError,
    selection::{Addresses, Families, Selection},
    snapshot::{
        AddressFlags, HostSnapshot, InterfaceAddress, Reach, SnapshotError, UnderlayLink,
        UnderlayRoute, snapshot,
    },
};
use crate::{
    config::InterfaceOptions,
    model::{PerFamily, each_family},
};

/// Chooses by the options, in flannel's order: every `--iface`, every `--iface-regex`,
/// `--iface-can-reach`; without any of them the interface that owns the public address, else the
/// default route's. Every error can go away when the host's interfaces change.
///
/// Of the interface's addresses the one that flags name counts, public ones included; else one that
/// is `held`; else the one flannel would choose, but for virtual addresses.
pub fn select(
    host: &HostSnapshot,
    options: &InterfaceOptions,
    families: Families,
    held: &Held,
) -> Result<Selection, UnderlayError> {
    let public_ip = options.public_ip.map(IpAddr::V4);
    let public_ipv6 = options.public_ipv6.map(IpAddr::V6);
    let named: Vec<_> = public_ip.into_iter().chain(public_ipv6).collect();
    let lookup = Lookup {
        host,
        families,
        named: &named,
        held,
    };
    let mut notes = Vec::new();
    let found = match candidates(options) {
        candidates if candidates.is_empty() => unasked(lookup, options, &mut notes)?,
        candidates => first_match(lookup, candidates, &mut notes)?,
    };
    let found = with_public_ipv6(lookup, found, options)?;
    finish(lookup, found, options, notes)
}

/// As [`select`], for a node that runs: what one family lacks does not hold up the other, while that
/// stays on the interface in use. The error is about the family that is missing in the selection.
pub fn select_again(
    host: &HostSnapshot,
    options: &InterfaceOptions,
    families: Families,
    held: &Held,
) -> (Option<Selection>, Option<UnderlayError>) {
    let error = match select(host, options, families, held) {
        Ok(selection) => return (Some(selection), None),
        Err(error) => error,
    };
    let alone = |family| {
        select(host, options, family, held)
            .ok()
            .filter(|selection| held.interface() == Some(&*selection.name))
    };
    let selection = match families {
        Families::Dual => alone(Families::Ipv4).or_else(|| alone(Families::Ipv6)),
        Families::Ipv4 | Families::Ipv6 => None,
    };
    (selection, Some(error))
}

enum Candidate<'a> {
    Iface(&'a str),
    Regex(&'a str),
    CanReach(IpAddr),
}

fn candidates(options: &InterfaceOptions) -> Vec<Candidate<'_>> {
    let ifaces = options.iface.iter().map(|text| Candidate::Iface(text));
    let regexes = options
        .iface_regex
        .iter()
        .map(|text| Candidate::Regex(text));
    let can_reach = options.iface_can_reach.map(Candidate::CanReach);
    ifaces.chain(regexes).chain(can_reach).collect()
}

fn first_match<'a>(
    lookup: Lookup<'a>,
    candidates: Vec<Candidate<'_>>,
    notes: &mut Vec<String>,
) -> Result<Found<'a>, UnderlayError> {
    for candidate in candidates {
        let (text, found) = match candidate {
            Candidate::Iface(text) => (text.to_owned(), lookup.iface(text)),
            Candidate::Regex(text) => (text.to_owned(), lookup.regex(text)),
            Candidate::CanReach(ip) => (format!("ifaceCanReach: {ip}"), lookup.can_reach(ip)),
        };
        match found.and_then(|found| lookup.complete(found)) {
            Ok(found) => return Ok(found),
            Err(error) => {
                notes.push(format!(
                    "could not find valid interface matching {text}: {error}"
                ));
            }
        }
    }
    Err(UnderlayError::NoCandidate {
        reasons: std::mem::take(notes),
    })
}

/// flannel insists that the public address is local when nothing else is said. One that is not,
/// because a NAT maps it to this node, is advertised all the same here.
fn unasked<'a>(
    lookup: Lookup<'a>,
    options: &InterfaceOptions,
    notes: &mut Vec<String>,
) -> Result<Found<'a>, UnderlayError> {
    let public = PerFamily {
        ipv4: options.public_ip.map(IpAddr::V4),
        ipv6: options.public_ipv6.map(IpAddr::V6),
    };
    let public = each_family!(public.zip(lookup.families.served()), (public, served) => {
        public.filter(|_| served)
    });
    for public in public.into_iter().flatten() {
        match lookup.owner_of(public) {
            Some(link) => return lookup.complete(Found::at(link, public)),
            None => notes.push(format!(
                "no interface has the public IP address {public}: it is advertised, and tunnel \
                 packets leave by the default route's interface; choose another one with --iface"
            )),
        }
    }
    lookup
        .default_route()
        .and_then(|found| lookup.complete(found))
}

/// The public IPv6 address, if it is local, must be on the chosen interface, and is the tunnel's own
/// address then.
fn with_public_ipv6<'a>(
    lookup: Lookup<'a>,
    mut found: Found<'a>,
    options: &InterfaceOptions,
) -> Result<Found<'a>, UnderlayError> {
    let Some(public) = options
        .public_ipv6
        .filter(|_| lookup.families == Families::Dual)
    else {
        return Ok(found);
    };
    match lookup.owner_of(public.into()) {
        Some(owner) if owner.ifindex == found.link.ifindex => {
            found.addresses.ipv6 = Some(public);
        }
        Some(owner) => {
            return Err(UnderlayError::OtherInterface {
                ipv6: owner.name.clone(),
                ipv4: found.link.name.clone(),
            });
        }
        None => {}
    }
    Ok(found)
}

fn finish(
    lookup: Lookup<'_>,
    found: Found<'_>,
    options: &InterfaceOptions,
    notes: Vec<String>,
) -> Result<Selection, UnderlayError> {
    let Found { link, addresses } = found;
    let public = PerFamily {
        ipv4: options.public_ip,
        ipv6: options.public_ipv6,
    };
    let addresses = addresses.zip(public).zip(lookup.families.served());
    if link.mtu == 0 {
        return Err(UnderlayError::NoMtu {
            interface: link.name.clone(),
        });
    }
    Ok(Selection {
        ifindex: link.ifindex,
        name: link.name.clone(),
        mtu: link.mtu,
        hardware: link.hardware,
        ethernet: link.ethernet,
        addresses: each_family!(addresses, ((local, public), served) => {
            local.filter(|_| served).map(|local| Addresses {
                local,
                public: public.unwrap_or(local),
            })
        }),
        notes,
    })
}
