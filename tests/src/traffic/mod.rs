//! Traffic with verified payloads, sent from threads inside the namespaces: no tool is needed on
//! the machine, and every byte that arrives is compared with the one that was sent.

pub mod connection;
pub mod flow;
pub mod pattern;
pub mod ping;
pub mod ping6;
pub mod sctp;
pub mod tcp;
pub mod udp;

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::netns::Namespace;

/// No single socket operation takes longer on a working network, even one that retransmits.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// One end of a conversation: an address, and the namespace that has it.
#[derive(Clone, Debug)]
pub struct Endpoint<A = Ipv4Addr> {
    pub namespace: Namespace,
    pub address: A,
}

/// An address of either family.
pub trait Address: Copy + Display + Into<IpAddr> + Send + Sync + 'static {}

impl Address for Ipv4Addr {}
impl Address for Ipv6Addr {}
impl Address for IpAddr {}

impl<A: Address> Endpoint<A> {
    /// The same, where either family will do.
    pub fn of_any_family(self) -> Endpoint<IpAddr> {
        Endpoint {
            namespace: self.namespace,
            address: self.address.into(),
        }
    }

    /// Any port of it.
    fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.address.into(), 0)
    }
}
