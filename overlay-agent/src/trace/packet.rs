//! The packet that is asked about.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use clap::ValueEnum;
use overlay_common::slow;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// Echo.
    Icmp,
}

/// A packet as far as it is known. Without a port it stands for one of any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Packet {
    pub protocol: Protocol,
    pub source: IpAddr,
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub destination_port: Option<u16>,
}

/// Which of its ends netfilter rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translated {
    Source,
    Destination,
}

impl Packet {
    /// As the IP header has it.
    pub const fn protocol_number(&self) -> u8 {
        match (self.protocol, self.source.is_ipv4()) {
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Icmp, true) => 1,
            (Protocol::Icmp, false) => 58,
        }
    }

    /// Its bit in `OVL_SLOW`.
    pub const fn slow_bit(&self) -> u8 {
        match self.protocol {
            Protocol::Tcp => slow::TCP,
            Protocol::Udp => slow::UDP,
            Protocol::Icmp => slow::ICMP,
        }
    }

    #[must_use]
    pub const fn to(self, destination: SocketAddr) -> Self {
        Self {
            destination: destination.ip(),
            destination_port: Some(destination.port()),
            ..self
        }
    }

    /// Whether the packet may have these ends.
    pub fn is_between(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let fits = |port: Option<u16>, of: u16| port.is_none_or(|port| port == of);
        self.source == source.ip()
            && self.destination == destination.ip()
            && fits(self.source_port, source.port())
            && fits(self.destination_port, destination.port())
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        };
        let source = end(self.source, self.source_port);
        let destination = end(self.destination, self.destination_port);
        write!(f, "{protocol} {source} → {destination}")
    }
}
