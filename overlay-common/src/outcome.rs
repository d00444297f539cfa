//! What happened to a packet at a hook: one outcome for each packet, one counter for each outcome.
//!
//! `OVL_STATS` is a per-CPU array; the slot of `outcome` at `hook` is
//! `hook * OUTCOMES_PER_HOOK + outcome`. The sum over one hook is the number of packets it saw.
//! Numbers are never reused: a removed outcome leaves a hole.

use bytemuck::{Pod, Zeroable};

/// Value of `OVL_STATS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counter {
    pub packets: u64,
    /// Bytes of the frame as the hook saw it; a GSO packet counts once, with its whole length.
    pub bytes: u64,
}

/// Slots kept per hook.
pub const OUTCOMES_PER_HOOK: u32 = 64;
/// Slots kept for hooks.
pub const HOOKS: u32 = 8;
/// Size of `OVL_STATS`.
pub const COUNTERS: usize = (OUTCOMES_PER_HOOK * HOOKS) as usize;

/// What an outcome means for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Forwarded by the program itself.
    Fast,
    /// Spared the tunnel device and what is below it; the kernel filters and routes the inner packet.
    Short,
    /// The packet went on its way in the kernel, and the flow table, or the way of a node, changed.
    Permit,
    /// Left to the kernel tier.
    Decline,
    /// Dropped by the program.
    Drop,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Short => "short",
            Self::Permit => "permit",
            Self::Decline => "decline",
            Self::Drop => "drop",
        }
    }
}

macro_rules! hooks {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Where a program is attached.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Hook {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Hook {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name used in the CLI, the log and the docs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

hooks! {
    /// `overlay_egress`: host side of a pod veth, packets from the pod.
    Egress = 0, "egress";
    /// `overlay_confirm`: packets leaving through `flannel.<VNI>`, and through the underlay.
    Confirm = 1, "confirm";
    /// `overlay_ingress`: packets arriving on the underlay interface.
    Ingress = 2, "ingress";
    /// `overlay_arrive`: packets the kernel decapsulated.
    Arrive = 3, "arrive";
    /// `overlay_deliver`: host side of a pod veth, packets to the pod.
    Deliver = 4, "deliver";
    /// `overlay_guard`: XDP on the underlay interface, before the kernel has made an skb.
    Guard = 5, "guard";
}

impl Hook {
    /// The hooks of TC programs: all but the guard.
    pub const CLASSIFIERS: &[Self] = &[
        Self::Egress,
        Self::Confirm,
        Self::Ingress,
        Self::Arrive,
        Self::Deliver,
    ];
}

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $kind:ident, $text:literal;)+) => {
        /// What happened to a packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Outcome {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name used in the CLI, the log and the docs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            pub const fn kind(self) -> Kind {
                match self {
                    $(Self::$name => Kind::$kind,)+
                }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

outcomes! {
    /// Encapsulated and redirected to the underlay, or decapsulated and redirected into the pod.
    FastTunnel = 0, Fast, "fast_tunnel";
    /// Routed without encapsulation by the program.
    FastDirect = 1, Fast, "fast_direct";

    /// As one of the two above, with the remote end rewritten as netfilter translates it: a service's.
    FastTranslated = 3, Fast, "fast_translated";

    /// Sent by a program; nothing to confirm.
    Forwarded = 2, Fast, "forwarded";

    /// The kernel carried the packet unchanged: its direction got or kept a permit.
    PermitGranted = 8, Permit, "permit_granted";
    /// FIN or RST, or SCTP's like: the flow's entry was removed.
    FlowClosed = 9, Permit, "flow_closed";

    /// The fast path is switched off, for now or for good.
    Disabled = 16, Decline, "disabled";
    /// Neither IPv4 nor IPv6, or not what its EtherType says: ARP and others.
    NotIp = 17, Decline, "not_ip";
    /// Too short for the headers it announces.
    Truncated = 18, Decline, "truncated";
    /// Carries a VLAN tag.
    Vlan = 19, Decline, "vlan";
    /// Has IP options, or IPv6 extension headers.
    IpOptions = 20, Decline, "ip_options";
    /// A fragment: it carries no ports, or not all of the datagram.
    Fragment = 21, Decline, "fragment";
    /// Neither TCP, UDP, SCTP nor ICMP echo: neighbour discovery, for one.
    Protocol = 22, Decline, "protocol";
    /// TCP with SYN, FIN or RST, or without ACK, or SCTP with more than data and acknowledgements: the kernel's connection tracking must see it.
    TcpControl = 23, Decline, "tcp_control";
    /// The TTL or hop limit ends here: the kernel sends the ICMP error.
    Ttl = 24, Decline, "ttl";
    /// No permit for this direction of the flow, it ran out, or flows of the protocol get none.
    NoPermit = 25, Decline, "no_permit";
    /// The entry is of a generation before the last flush.
    Generation = 26, Decline, "generation";
    /// The frame is not addressed to the gateway, or comes from a group's address or none: it is bridged
    /// or dropped, not routed.
    NotGateway = 27, Decline, "not_gateway";
    /// Larger than the path or the pod network takes: the kernel fragments or sends the ICMP error.
    Mtu = 28, Decline, "mtu";
    /// The node is not known, or the way to it has changed since the permit was granted.
    Nexthop = 29, Decline, "nexthop";
    /// The kernel refused to make room for the headers.
    AdjustRoom = 30, Decline, "adjust_room";
    /// Not for the pod network: the node's own traffic, or traffic to the outside.
    NotOverlay = 31, Decline, "not_overlay";
    /// Tunnel packet from an address that is no peer, or, with the udp backend, from another port than
    /// nodes have.
    UnknownPeer = 32, Decline, "unknown_peer";
    /// Tunnel packet with another VNI, reserved bits, or a wrong inner destination MAC.
    VxlanHeader = 33, Decline, "vxlan_header";
    /// The outer source is not the node that owns the inner source.
    WrongPeer = 34, Decline, "wrong_peer";
    /// Congestion mark on a packet whose sender knows no ECN: the kernel drops it.
    Ecn = 35, Decline, "ecn";
    /// The stamp is missing or belongs to another flow, TOS or TTL: the packet was changed on its
    /// way, or did not come from a pod or a peer.
    Translated = 36, Decline, "translated";
    /// SYN, or SCTP's like: an older flow's entry was removed; the permit comes with a later packet.
    Handshake = 37, Decline, "handshake";
    /// The interface the packet came in by is no known gateway.
    NoGateway = 38, Decline, "no_gateway";
    /// The kernel sent the packet in another form or another way than the fast path would: neither by
    /// the tunnel nor directly to the node, encrypted, or by a route it does not tell of.
    OtherPath = 39, Decline, "other_path";
    /// Stamped for a later permit.
    Stamped = 40, Decline, "stamped";
    /// The flow table refused the entry.
    TableFull = 41, Decline, "table_full";
    /// The IP length disagrees with the frame's.
    Length = 42, Decline, "length";
    /// Received another way (tunnel or direct) than the permit was granted for.
    OtherMode = 43, Decline, "other_mode";
    /// Delivered where its MAC address was not seen: a bridge floods what it has forgotten.
    UnknownPod = 44, Decline, "unknown_pod";
    /// UDP datagrams in one GSO packet: once BPF has decapsulated it, the kernel cannot split it.
    UdpGso = 45, Decline, "udp_gso";
    /// The guard found nothing wrong with it.
    Passed = 46, Decline, "passed";
    /// Over IPv6 fast tunnel packets have no UDP checksum, and the lease of the peer does not say that
    /// it takes such.
    PeerChecksum = 47, Decline, "peer_checksum";

    /// The headers could not be written after the packet was changed.
    Rewrite = 48, Drop, "rewrite";
    /// A pod tried to send tunnel packets to a node, or may have: it hid the packet in VLAN tags.
    PodTunnel = 49, Drop, "pod_tunnel";
    /// Tunnel packet from an address that is no peer, stopped by the guard.
    GuardPeer = 50, Drop, "guard_peer";
    /// Tunnel packet without a valid VNI, stopped by the guard.
    GuardHeader = 51, Drop, "guard_header";
    /// Tunnel packet too short for the frame it should carry, stopped by the guard.
    GuardTruncated = 52, Drop, "guard_truncated";

    /// The node has no pods of this address family, or is not configured yet.
    Unserved = 53, Decline, "unserved";
    /// The pod's MAC address was seen on another interface since the permit was granted.
    PodMoved = 54, Decline, "pod_moved";
    /// Let pass unchanged to the tunnel device: its direction gets the permit if the tunnel packet
    /// leaves the underlay in clear; with the udp backend, with the next packet.
    Leaving = 55, Decline, "leaving";
    /// The packet filter judges each packet of the flow: `status` names the rule.
    PerPacketRule = 56, Decline, "per_packet_rule";
    /// Carries the mark of `--slow-mark`: its flow is to stay on the kernel path.
    SlowMark = 57, Decline, "slow_mark";
    /// Another DSCP or TTL than the packet that earned the permit: rules may treat it differently.
    OtherHeader = 58, Decline, "other_header";
    /// May be the only packet of its flow in this direction: the next one earns the permit.
    FirstPacket = 59, Decline, "first_packet";

    /// The tunnel headers were written, or removed, past the kernel's tunnel device, as its own were
    /// let pass to or from the node a moment ago. The kernel filters and routes the inner packet.
    ShortWay = 60, Short, "short_way";
    /// The kernel's tunnel packet left the underlay in clear: the node has got the short way. The
    /// forwarder's did, with the udp backend: flows to the node earn their permits.
    WayOpened = 61, Permit, "way_opened";
}

/// The slot of `outcome` at `hook` in `OVL_STATS`.
#[inline(always)]
pub const fn slot(hook: Hook, outcome: Outcome) -> u32 {
    hook as u32 * OUTCOMES_PER_HOOK + outcome as u32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_its_own_name_and_fits_its_hook() {
        let names: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        assert!(
            Outcome::ALL
                .iter()
                .all(|&outcome| (outcome as u32) < OUTCOMES_PER_HOOK)
        );
        assert!(
            Outcome::ALL
                .iter()
                .all(|outcome| outcome.describe().ends_with('.'))
        );
    }

    #[test]
    fn no_two_outcomes_share_a_slot() {
        let slots: BTreeSet<_> = Hook::ALL
            .iter()
            .flat_map(|&hook| Outcome::ALL.iter().map(move |&outcome| slot(hook, outcome)))
            .collect();
        assert_eq!(slots.len(), Hook::ALL.len() * Outcome::ALL.len());
        assert!(slots.iter().all(|&slot| (slot as usize) < COUNTERS));
    }
}
