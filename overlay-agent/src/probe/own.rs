//! This node's ends of the overlay.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{
    book::Question,
    packet::{Identity, Kind, LEN, Packet},
};

/// No question has more bytes.
pub const LARGEST: usize = 16 * 1024;

/// This node's own end of the overlay in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Of the backend's device.
    pub address: IpAddr,
    pub subnet: IpNetwork,
    pub public_ip: IpAddr,
    /// Largest packet of pods.
    pub mtu: u32,
}

impl Own {
    pub fn identity(&self) -> Identity {
        Identity {
            subnet: self.subnet,
            public_ip: self.public_ip,
        }
    }

    pub fn question(&self, question: Question) -> Packet {
        Packet {
            kind: Kind::Question,
            is_plain: false,
            number: question.number,
            cookie: question.cookie,
            node: self.identity(),
        }
    }

    /// Bytes of UDP payload in the largest packet.
    pub fn room(&self) -> usize {
        let headers = if self.address.is_ipv4() { 28 } else { 48 };
        let room = self.mtu.saturating_sub(headers);
        usize::try_from(room).unwrap_or(LEN).min(LARGEST)
    }
}
