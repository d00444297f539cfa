//! Traffic with verified payloads, sent from threads inside the namespaces: no tool is needed on
//! the machine, and every byte that arrives is compared with the one that was sent.

pub mod connection;
pub mod flow;
pub mod pattern;
pub mod ping;
pub mod tcp;
pub mod udp;

use std::{net::Ipv4Addr, time::Duration};

use crate::netns::Namespace;

/// No single socket operation takes longer on a working network, even one that retransmits.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// One end of a conversation: an address, and the namespace that has it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub namespace: Namespace,
    pub address: Ipv4Addr,
}
