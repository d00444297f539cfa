//! The subnet file, `/run/flannel/subnet.env`: what this node leases, for whoever starts containers
//! here, and for the next start, which asks for the same subnet again.

pub mod atomic;
pub mod dotenv;
mod previous;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnetwork::{Ipv4Network, Ipv6Network};

pub use self::{atomic::FileError, previous::Previous};

/// The contents, in flannel's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    pub ipv4: Option<Ipv4Lines>,
    pub ipv6: Option<Ipv6Lines>,
    /// MTU of the pods' interfaces.
    pub mtu: u32,
    pub ip_masq: bool,
}

/// The pod network and the subnet leased from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Lines {
    pub network: Ipv4Network,
    pub subnet: Ipv4Network,
}

/// The IPv6 pod network and the subnet leased from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Lines {
    pub network: Ipv6Network,
    pub subnet: Ipv6Network,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Changed,
    /// The file said the same already and was left alone.
    Unchanged,
}

impl SubnetEnv {
    /// Replaces the file atomically, unless it has these contents.
    pub fn write(&self, path: &Path) -> Result<Written, FileError> {
        let contents = self.to_string();
        if atomic::read(path).is_ok_and(|present| present.as_deref() == Some(&contents)) {
            return Ok(Written::Unchanged);
        }
        atomic::replace(path, contents.as_bytes())?;
        Ok(Written::Changed)
    }
}

/// Subnets are written with the address of their first host, which the bridge takes.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Ipv4Lines { network, subnet }) = self.ipv4 {
            let gateway = subnet.network().to_bits().wrapping_add(1);
            let gateway = Ipv4Addr::from_bits(gateway);
            writeln!(
                f,
                "FLANNEL_NETWORK={}/{}",
                network.network(),
                network.prefix()
            )?;
            writeln!(f, "FLANNEL_SUBNET={gateway}/{}", subnet.prefix())?;
        }
        if let Some(Ipv6Lines { network, subnet }) = self.ipv6 {
            let gateway = subnet.network().to_bits().wrapping_add(1);
            let gateway = Ipv6Addr::from_bits(gateway);
            writeln!(
                f,
                "FLANNEL_IPV6_NETWORK={}/{}",
                network.network(),
                network.prefix()
            )?;
            writeln!(f, "FLANNEL_IPV6_SUBNET={gateway}/{}", subnet.prefix())?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

#[cfg(test)]
mod tests;
