//! What is measured, and the figures that come out of it.

use super::{load::Kind, variant::Variant};

/// One kind of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Udp,
    Flood,
    Ping,
    Connect,
    Question,
    Bulk,
    BulkSegmented,
    /// [`Metric::Udp`] while the kernel measures the programs.
    Programs,
}

impl Metric {
    pub const ALL: [Self; 8] = [
        Self::Udp,
        Self::Flood,
        Self::Ping,
        Self::Connect,
        Self::Question,
        Self::Bulk,
        Self::BulkSegmented,
        Self::Programs,
    ];

    pub fn load(self) -> Kind {
        match self {
            Self::Udp | Self::Programs => Kind::Udp,
            Self::Flood => Kind::Flood,
            Self::Ping => Kind::Ping,
            Self::Connect => Kind::Connect,
            Self::Question => Kind::Question,
            Self::Bulk | Self::BulkSegmented => Kind::Bulk,
        }
    }

    /// Whether it is measured for `variant`.
    pub fn applies_to(self, variant: &Variant) -> bool {
        match self {
            // Of what runs on another core the loads of one core know nothing.
            _ if variant.is_in_user_space() => self == Self::Flood,
            // Segments are not left to a device that computes no checksums.
            Self::BulkSegmented if variant.summed => false,
            Self::Programs => variant.is_agent() && variant.is_plain(),
            Self::Udp => true,
            Self::Ping | Self::Connect | Self::Question => !variant.altered,
            _ => variant.is_plain(),
        }
    }

    /// Whether nearly all its packets are ones the fast path may carry: connections of one byte are
    /// mostly handshakes, which it must not, and a question is the first packet of its flow.
    pub fn is_established(self) -> bool {
        !matches!(self, Self::Connect | Self::Question)
    }
}

/// A number that is compared between variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    UdpCpu,
    UdpReceived,
    /// CPU time of the processes that carry the packets.
    ForwarderCpu,
    PingP50,
    PingP99,
    Connections,
    Questions,
    BulkCpu,
    SegmentedCpu,
    EgressTime,
    IngressTime,
}

impl Figure {
    pub const ALL: [Self; 11] = [
        Self::UdpCpu,
        Self::UdpReceived,
        Self::ForwarderCpu,
        Self::PingP50,
        Self::PingP99,
        Self::Connections,
        Self::Questions,
        Self::BulkCpu,
        Self::SegmentedCpu,
        Self::EgressTime,
        Self::IngressTime,
    ];

    /// Key in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::UdpCpu => "udp_cpu_ns",
            Self::UdpReceived => "udp_received_per_s",
            Self::ForwarderCpu => "udp_forwarder_cpu_ns",
            Self::PingP50 => "ping_p50_ns",
            Self::PingP99 => "ping_p99_ns",
            Self::Connections => "connections_per_s",
            Self::Questions => "questions_per_s",
            Self::BulkCpu => "bulk_cpu_s_per_gb",
            Self::SegmentedCpu => "bulk_segmented_cpu_s_per_gb",
            Self::EgressTime => "egress_program_ns",
            Self::IngressTime => "ingress_program_ns",
        }
    }

    /// Head of the table, with the unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::UdpCpu => "CPU per 64 B UDP packet, one core (ns)",
            Self::UdpReceived => "64 B UDP received, two cores (packets/s)",
            Self::ForwarderCpu => "CPU of both forwarders per 64 B UDP packet (ns)",
            Self::PingP50 => "TCP ping-pong, one core, p50 (ns)",
            Self::PingP99 => "TCP ping-pong, one core, p99 (ns)",
            Self::Connections => "connect/request/close, one core (per s)",
            Self::Questions => "questions by UDP, a new socket each, one core (per s)",
            Self::BulkCpu => "bulk TCP, GSO wire (CPU s/GB)",
            Self::SegmentedCpu => "bulk TCP, segmented wire with GRO (CPU s/GB)",
            Self::EgressTime => "egress program, 64 B UDP (ns)",
            Self::IngressTime => "ingress program, 64 B UDP (ns)",
        }
    }

    pub fn metric(self) -> Metric {
        match self {
            Self::UdpCpu => Metric::Udp,
            Self::UdpReceived | Self::ForwarderCpu => Metric::Flood,
            Self::PingP50 | Self::PingP99 => Metric::Ping,
            Self::Connections => Metric::Connect,
            Self::Questions => Metric::Question,
            Self::BulkCpu => Metric::Bulk,
            Self::SegmentedCpu => Metric::BulkSegmented,
            Self::EgressTime | Self::IngressTime => Metric::Programs,
        }
    }

    /// Whether `variant` has it.
    pub fn applies_to(self, variant: &Variant) -> bool {
        let is_of_forwarders = self == Self::ForwarderCpu;
        self.metric().applies_to(variant) && (!is_of_forwarders || variant.is_in_user_space())
    }

    /// Digits after the point in tables.
    pub fn digits(self) -> usize {
        match self {
            Self::BulkCpu | Self::SegmentedCpu => 3,
            _ => 0,
        }
    }
}
