//! What the subnet file of an earlier run, or one written by hand, says.

use std::{fmt::Display, path::Path};

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::{
    atomic::{self, FileError},
    dotenv::Dotenv,
};
use crate::go::value::{Cidr, parse_cidr};

/// The networks and subnets that the file names, without host bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    pub ipv4_network: Option<Ipv4Network>,
    pub ipv4_subnet: Option<Ipv4Network>,
    pub ipv6_network: Option<Ipv6Network>,
    pub ipv6_subnet: Option<Ipv6Network>,
    /// What was skipped; to be logged.
    pub warnings: Vec<String>,
}

impl Previous {
    /// Reads the file; an absent one says nothing.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = atomic::read(path)?.unwrap_or_default();
        let mut previous = Self::parse(&text);
        for warning in &mut previous.warnings {
            *warning = format!("{}: {warning}", path.display());
        }
        Ok(previous)
    }

    pub fn parse(text: &str) -> Self {
        let file = Dotenv::parse(text);
        let mut warnings = Vec::new();
        for line in &file.bad_lines {
            warnings.push(format!("line {line} is no assignment and is skipped"));
        }
        let ipv4 = |cidr| {
            if let Cidr::V4(network) = cidr {
                Some(network)
            } else {
                None
            }
        };
        let ipv6 = |cidr| {
            if let Cidr::V6(network) = cidr {
                Some(network)
            } else {
                None
            }
        };
        Self {
            ipv4_network: only(&file, "FLANNEL_NETWORK", ipv4, &mut warnings),
            ipv4_subnet: only(&file, "FLANNEL_SUBNET", ipv4, &mut warnings),
            ipv6_network: only(&file, "FLANNEL_IPV6_NETWORK", ipv6, &mut warnings),
            ipv6_subnet: only(&file, "FLANNEL_IPV6_SUBNET", ipv6, &mut warnings),
            warnings,
        }
    }
}

/// The one network of a comma list. flannel skips entries that do not parse, and takes a list of
/// several networks for none.
fn only<T: Copy + Display>(
    file: &Dotenv,
    name: &str,
    family: impl Fn(Cidr) -> Option<T>,
    warnings: &mut Vec<String>,
) -> Option<T> {
    let mut found = Vec::new();
    for entry in file
        .get(name)?
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
    {
        match parse_cidr(entry).and_then(&family) {
            Some(network) => found.push(network),
            None => warnings.push(format!("{name}: {entry:?} is no subnet and is skipped")),
        }
    }
    match found[..] {
        [network] => Some(network),
        [] => None,
        _ => {
            warnings.push(format!(
                "{name}: there must be one subnet, not {}",
                found.len()
            ));
            None
        }
    }
}
