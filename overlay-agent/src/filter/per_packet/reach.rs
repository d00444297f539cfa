//! Which flows a rule can match, in the terms in which programs tell flows apart. What cannot be said
//! in them is left out, which makes the set larger, never smaller.

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use overlay_common::slow::{EGRESS, ICMP, INGRESS, SCTP, TCP, UDP};

/// [`Reach::families`].
pub const IPV4: u8 = 1;
pub const IPV6: u8 = 2;

/// More alternatives than these are replaced by what they have in common.
const MAX_ALTERNATIVES: usize = 16;

/// First and last port.
pub type Ports = (u16, u16);
pub const ANY_PORT: Ports = (0, u16::MAX);

/// Packets, by what all packets of a flow have in common.
///
/// Ports are narrower than [`ANY_PORT`] only where `protocols` lacks ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reach {
    pub families: u8,
    /// Bits of [`overlay_common::slow`].
    pub protocols: u8,
    /// Bits of [`overlay_common::slow`].
    pub directions: u8,
    pub source: Option<IpNetwork>,
    pub destination: Option<IpNetwork>,
    pub source_ports: Ports,
    pub destination_ports: Ports,
}

impl Reach {
    pub const ALL: Self = Self {
        families: IPV4 | IPV6,
        protocols: TCP | UDP | ICMP | SCTP,
        directions: EGRESS | INGRESS,
        source: None,
        destination: None,
        source_ports: ANY_PORT,
        destination_ports: ANY_PORT,
    };

    pub const fn families(families: u8) -> Self {
        Self {
            families,
            ..Self::ALL
        }
    }

    pub const fn protocols(protocols: u8) -> Self {
        Self {
            protocols,
            ..Self::ALL
        }
    }

    pub const fn directions(directions: u8) -> Self {
        Self {
            directions,
            ..Self::ALL
        }
    }

    pub fn from(source: IpNetwork) -> Self {
        Self {
            families: family_of(source),
            source: narrow(source),
            ..Self::ALL
        }
    }

    pub fn to(destination: IpNetwork) -> Self {
        Self {
            destination: narrow(destination),
            ..Self::families(family_of(destination))
        }
    }

    /// Both at once; `None` if no packet is in both.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let both = Self {
            families: self.families & other.families,
            protocols: self.protocols & other.protocols,
            directions: self.directions & other.directions,
            source: common_network(self.source, other.source).ok()?,
            destination: common_network(self.destination, other.destination).ok()?,
            source_ports: common_ports(self.source_ports, other.source_ports)?,
            destination_ports: common_ports(self.destination_ports, other.destination_ports)?,
        };
        (both.families != 0 && both.protocols != 0 && both.directions != 0).then_some(both)
    }

    /// The packets that answer these.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            directions: (self.directions & EGRESS) << 1 | (self.directions & INGRESS) >> 1,
            source: self.destination,
            destination: self.source,
            source_ports: self.destination_ports,
            destination_ports: self.source_ports,
            ..self
        }
    }

    pub fn contains(&self, other: &Self) -> bool {
        self.and(other) == Some(*other)
    }
}

/// Every packet that is in one of the first and in one of the second.
pub fn product(of: &[Reach], with: &[Reach]) -> Vec<Reach> {
    let mut found = Vec::new();
    for both in of
        .iter()
        .flat_map(|one| with.iter().filter_map(|other| one.and(other)))
    {
        if !found.contains(&both) {
            found.push(both);
        }
    }
    if found.len() <= MAX_ALTERNATIVES {
        return found;
    }
    let hull = with.iter().fold(
        Reach {
            families: 0,
            protocols: 0,
            directions: 0,
            ..Reach::ALL
        },
        |hull, reach| Reach {
            families: hull.families | reach.families,
            protocols: hull.protocols | reach.protocols,
            directions: hull.directions | reach.directions,
            ..hull
        },
    );
    of.iter().filter_map(|one| one.and(&hull)).collect()
}

/// Without those that others contain.
pub fn simplified(reaches: impl IntoIterator<Item = Reach>) -> Vec<Reach> {
    let mut kept: Vec<Reach> = Vec::new();
    for reach in reaches {
        if kept.iter().any(|other| other.contains(&reach)) {
            continue;
        }
        kept.retain(|other| !reach.contains(other));
        kept.push(reach);
    }
    kept.sort();
    kept
}

/// The smallest network that holds both addresses.
pub fn network_around(first: IpAddr, last: IpAddr) -> Option<IpNetwork> {
    let prefix = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros(),
        _ => return None,
    };
    let prefix = u8::try_from(prefix).ok()?;
    let network = IpNetwork::new(first, prefix).ok()?;
    IpNetwork::new(network.network(), prefix).ok()
}

const fn family_of(network: IpNetwork) -> u8 {
    match network {
        IpNetwork::V4(_) => IPV4,
        IpNetwork::V6(_) => IPV6,
    }
}

/// The network with its host bits cleared; nothing if it is everything.
fn narrow(network: IpNetwork) -> Option<IpNetwork> {
    (network.prefix() != 0)
        .then(|| IpNetwork::new(network.network(), network.prefix()).ok())
        .flatten()
}

/// Two networks without an address in common.
struct Disjoint;

fn common_network(
    one: Option<IpNetwork>,
    other: Option<IpNetwork>,
) -> Result<Option<IpNetwork>, Disjoint> {
    let (Some(one), Some(other)) = (one, other) else {
        return Ok(one.or(other));
    };
    let (wide, narrow) = if one.prefix() <= other.prefix() {
        (one, other)
    } else {
        (other, one)
    };
    if wide.contains(narrow.network()) {
        Ok(Some(narrow))
    } else {
        Err(Disjoint)
    }
}

fn common_ports(one: Ports, other: Ports) -> Option<Ports> {
    let both = (one.0.max(other.0), one.1.min(other.1));
    (both.0 <= both.1).then_some(both)
}

/// As `status` and the log tell what is left to the kernel.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        match self.families {
            IPV4 => words.push("IPv4".to_owned()),
            IPV6 => words.push("IPv6".to_owned()),
            _ => {}
        }
        let protocols = [
            (TCP, "tcp"),
            (UDP, "udp"),
            (ICMP, "icmp echo"),
            (SCTP, "sctp"),
        ];
        let named: Vec<_> = protocols
            .iter()
            .filter(|(bit, _)| self.protocols & bit != 0)
            .map(|&(_, name)| name)
            .collect();
        if named.len() < protocols.len() {
            words.push(named.join(" and "));
        }
        match self.directions {
            EGRESS => words.push("from pods".into()),
            INGRESS => words.push("to pods".into()),
            _ => {}
        }
        let ports = |(first, last): Ports| {
            if first == last {
                format!("port {first}")
            } else {
                format!("ports {first}-{last}")
            }
        };
        for (word, network, range) in [
            ("from", self.source, self.source_ports),
            ("to", self.destination, self.destination_ports),
        ] {
            if let Some(network) = network {
                words.push(format!("{word} {network}"));
            }
            if range != ANY_PORT {
                words.push(format!("{word} {}", ports(range)));
            }
        }
        if words.is_empty() {
            words.push("everything".into());
        }
        f.write_str(&words.join(" "))
    }
}
