//! What the counters say about the fast path as a whole.

use overlay_common::outcome::{Counter, Hook, Kind, Outcome};
use serde::{Deserialize, Serialize};

/// Pod packets between nodes that a hook saw, by who carried them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastShare {
    /// Carried by the programs.
    pub fast: u64,
    /// Recognised as pod packets and left to the kernel.
    pub kernel: u64,
}

impl FastShare {
    /// The share at `hook`: [`Hook::Egress`] for packets from pods, [`Hook::Ingress`] for packets to
    /// them. The other hooks see each packet a second time.
    pub fn at(hook: Hook, counters: &[(Hook, Outcome, Counter)]) -> Self {
        counters.iter().filter(|(at, ..)| *at == hook).fold(
            Self::default(),
            |sum, (_, outcome, counter)| match outcome.kind() {
                Kind::Fast => Self {
                    fast: sum.fast.saturating_add(counter.packets),
                    ..sum
                },
                Kind::Short | Kind::Decline if is_pod_packet(*outcome) => Self {
                    kernel: sum.kernel.saturating_add(counter.packets),
                    ..sum
                },
                Kind::Short | Kind::Decline | Kind::Permit | Kind::Drop => sum,
            },
        )
    }

    /// What came since `before`. Counters that are less than they were have begun anew.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let came = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            fast: came(self.fast, before.fast),
            kernel: came(self.kernel, before.kernel),
        }
    }

    pub const fn total(self) -> u64 {
        self.fast.saturating_add(self.kernel)
    }

    /// Hundredths of a percent, rounded down; `None` without packets.
    pub fn basis_points(self) -> Option<u16> {
        let all = u128::from(self.fast) + u128::from(self.kernel);
        let share = (u128::from(self.fast) * 10_000).checked_div(all)?;
        u16::try_from(share).ok()
    }

    pub fn percent(self) -> Option<f64> {
        self.basis_points().map(|share| f64::from(share) / 100.0)
    }
}

/// Whether a packet with this outcome is known to be one between pods of different nodes. The others
/// were declined before that could be told, or are something else.
const fn is_pod_packet(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Disabled
        | Outcome::Unserved
        | Outcome::NotIp
        | Outcome::Truncated
        | Outcome::Vlan
        | Outcome::IpOptions
        | Outcome::Fragment
        | Outcome::Protocol
        | Outcome::NotOverlay
        | Outcome::UnknownPeer
        | Outcome::VxlanHeader
        | Outcome::Passed
        | Outcome::GuardPeer
        | Outcome::GuardHeader
        | Outcome::GuardTruncated => false,
        Outcome::FastTunnel
        | Outcome::FastDirect
        | Outcome::FastTranslated
        | Outcome::Forwarded
        | Outcome::PermitGranted
        | Outcome::FlowClosed
        | Outcome::TcpControl
        | Outcome::Ttl
        | Outcome::NoPermit
        | Outcome::Generation
        | Outcome::NotGateway
        | Outcome::Mtu
        | Outcome::Nexthop
        | Outcome::PeerChecksum
        | Outcome::AdjustRoom
        | Outcome::WrongPeer
        | Outcome::Ecn
        | Outcome::Translated
        | Outcome::Handshake
        | Outcome::NoGateway
        | Outcome::OtherPath
        | Outcome::Stamped
        | Outcome::TableFull
        | Outcome::Length
        | Outcome::OtherMode
        | Outcome::OtherHeader
        | Outcome::FirstPacket
        | Outcome::UnknownPod
        | Outcome::PodMoved
        | Outcome::PerPacketRule
        | Outcome::SlowMark
        | Outcome::Leaving
        | Outcome::ShortWay
        | Outcome::WayOpened
        | Outcome::UdpGso
        | Outcome::Rewrite
        | Outcome::PodTunnel => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(packets: u64) -> Counter {
        Counter {
            packets,
            bytes: packets * 100,
        }
    }

    #[test]
    fn the_share_counts_pod_packets_of_one_hook_only() {
        let counters = [
            (Hook::Egress, Outcome::FastTunnel, counter(9_900)),
            (Hook::Egress, Outcome::FastDirect, counter(90)),
            (Hook::Egress, Outcome::NoPermit, counter(10)),
            (Hook::Egress, Outcome::NotOverlay, counter(50_000)),
            (Hook::Ingress, Outcome::NoPermit, counter(1)),
            (Hook::Confirm, Outcome::PermitGranted, counter(10)),
        ];
        let share = FastShare::at(Hook::Egress, &counters);
        assert_eq!(
            share,
            FastShare {
                fast: 9_990,
                kernel: 10
            }
        );
        assert_eq!(share.basis_points(), Some(9_990));
        assert_eq!(FastShare::default().percent(), None);
    }
}
