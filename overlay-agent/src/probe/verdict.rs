//! What the answers, and their absence, mean. Pure.

use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::book::{MISSES, Peer};

/// How a peer is. Nodes tell each other by number, so that a number stays what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    Unknown = 0,
    Healthy = 1,
    NoAgent = 2,
    Lossy = 3,
    PathMtu = 4,
    OneWay = 5,
    Blocked = 6,
    Unreachable = 7,
    Silent = 8,
    OtherNode = 9,
    Duplicate = 10,
    Checksum = 11,
}

/// A peer loses too much from this share of this many questions on.
const LOSSY: (usize, usize) = (5, 10);

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Verdict {
    pub const ALL: [Self; 12] = [
        Self::Unknown,
        Self::Healthy,
        Self::NoAgent,
        Self::Lossy,
        Self::PathMtu,
        Self::OneWay,
        Self::Blocked,
        Self::Unreachable,
        Self::Silent,
        Self::OtherNode,
        Self::Duplicate,
        Self::Checksum,
    ];

    pub const fn number(self) -> u8 {
        self as u8
    }

    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|verdict| verdict.number() == number)
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::NoAgent => "no_agent",
            Self::Lossy => "lossy",
            Self::PathMtu => "path_mtu",
            Self::OneWay => "one_way",
            Self::Blocked => "blocked",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
            Self::OtherNode => "other_node",
            Self::Duplicate => "duplicate",
            Self::Checksum => "checksum",
        }
    }

    /// Whether pods are in trouble.
    pub const fn is_trouble(self) -> bool {
        !matches!(self, Self::Unknown | Self::Healthy | Self::NoAgent)
    }

    /// What it means, and where to look.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Unknown => "Not asked often enough yet.",
            Self::Healthy => "Small and large packets pass, both ways.",
            Self::NoAgent => {
                "Its VTEP answers ICMP, and nobody answers probes: stock flanneld, an agent that is stopped or does \
                 not probe, or a firewall at the port of the probes."
            }
            Self::Lossy => "Every fifth packet or more is lost.",
            Self::PathMtu => {
                "Small packets pass, and those as large as pods' do not: something between the nodes takes smaller \
                 packets only. Set MTU in the network config's Backend."
            }
            Self::OneWay => {
                "Its packets come through the overlay, and ours do not get there: a firewall at that node or on the \
                 way to it, at the tunnel's UDP port."
            }
            Self::Blocked => {
                "The node answers ICMP at its own address, and nothing comes from it through the overlay: a firewall \
                 at the tunnel's UDP port, or something that takes the port for itself."
            }
            Self::Unreachable => {
                "The node answers neither through the overlay nor at its own address."
            }
            Self::Silent => {
                "Nothing comes from it through the overlay. Whether the node is there is not known: sending ICMP \
                 takes CAP_NET_RAW."
            }
            Self::OtherNode => {
                "Another node than the lease says answers at its address: two nodes have one public IP or one subnet."
            }
            Self::Checksum => {
                "Packets without a UDP checksum pass, and those with one do not: something between the nodes, as a \
                 card that computes checksums inside tunnels, spoils them. ethtool -K <interface> \
                 tx-udp_tnl-csum-segmentation off tx-checksum-ip-generic off, on both nodes, one by one."
            }
            Self::Duplicate => {
                "Nothing comes from it, and another lease has the same public IP: only one of the two nodes can be \
                 reached."
            }
        }
    }

    pub fn of(peer: &Peer, interval: Duration, can_echo: bool, now: Instant) -> Self {
        if !peer.small.fails() {
            return Self::of_answering(peer);
        }
        let is_recent =
            |at: Instant| now.saturating_duration_since(at) < interval.saturating_mul(MISSES);
        if peer.plain.works() {
            Self::Checksum
        } else if peer.inside.works() {
            Self::NoAgent
        } else if peer.heard.is_some_and(is_recent) {
            Self::OneWay
        } else if peer.target.shared {
            Self::Duplicate
        } else if !can_echo {
            Self::Silent
        } else if peer.outside.works() {
            Self::Blocked
        } else if peer.outside.fails() {
            Self::Unreachable
        } else {
            Self::Unknown
        }
    }

    fn of_answering(peer: &Peer) -> Self {
        let lost = peer.window.iter().filter(|trip| trip.is_none()).count();
        let (share, least) = LOSSY;
        let target = &peer.target;
        let is_other = peer.identity.is_some_and(|identity| {
            (identity.subnet, identity.public_ip) != (target.subnet, target.public_ip)
        });
        if peer.small.answered.is_none() {
            Self::Unknown
        } else if is_other {
            Self::OtherNode
        } else if peer.large.fails() {
            Self::PathMtu
        } else if peer.window.len() >= least && lost * share >= peer.window.len() {
            Self::Lossy
        } else {
            Self::Healthy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_documented() {
        let commands = include_str!("../../../docs/operator-commands.md");
        let metrics = include_str!("../../../docs/metrics.md");
        let health = "| `overlay_peer_health` |";
        let metric = metrics.lines().find(|line| line.starts_with(health));
        let metric = metric.expect("the metric");
        for name in Verdict::ALL.map(|verdict| format!("`{}`", verdict.name())) {
            let row = format!("| {name} |");
            assert!(
                commands.lines().any(|line| line.starts_with(&row)),
                "{name}"
            );
            assert!(metric.contains(&name), "{name}");
        }
    }
}
