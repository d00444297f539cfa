//! How pod packets reach other nodes, as far as the tiers have to know: what a backend makes of its
//! options, without its name.

use overlay_common::config::{TUNNEL_UDP, TUNNEL_VXLAN};

/// How pod packets of a family reach other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// Whether peers are reached through a device of the backend's, but for those that are reached
    /// directly.
    pub device: bool,
    /// The tunnel whose packets the programs can make.
    pub tunnel: Option<Tunnel>,
    /// Which peers are reached by a plain route.
    pub direct: Direct,
    /// Whether the eBPF tier could carry it.
    pub may_be_fast: bool,
    /// Underlay MTU to assume instead of the interface's.
    pub mtu: Option<u32>,
    /// Bytes of the headers that tunnel packets have more.
    pub overhead: u32,
}

/// A tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub kind: TunnelKind,
    /// UDP port tunnel packets are sent to.
    pub port: u16,
}

/// What is in the datagrams of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// A frame, behind a vxlan header. The kernel makes them, too.
    Vxlan { vni: u32 },
    /// A packet. A process makes them, too, and sends from the port it sends to.
    Udp,
}

/// Peers that are reached without a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    Never,
    /// Those whose address is on-link.
    OnLink,
    /// All of them: they must be on-link.
    Always,
}

impl Direct {
    /// What the option `DirectRouting` of the backends that have a tunnel means.
    pub const fn routing(is_on: bool) -> Self {
        if is_on { Self::OnLink } else { Self::Never }
    }
}

impl Forwarding {
    /// Nobody is reached; it is not this agent's task.
    pub const NONE: Self = Self {
        device: false,
        tunnel: None,
        direct: Direct::Never,
        may_be_fast: false,
        mtu: None,
        overhead: 0,
    };

    /// Whether anything has to be programmed.
    pub fn is_any(&self) -> bool {
        self.device || self.direct != Direct::Never
    }

    /// What is left of the underlay's MTU, or of the configured one, inside the tunnel headers.
    pub fn pod_mtu(&self, underlay_mtu: u32) -> u32 {
        let mtu = self.mtu.unwrap_or(underlay_mtu);
        mtu.saturating_sub(self.overhead)
    }
}

impl TunnelKind {
    /// 0 where there is none.
    pub const fn vni(self) -> u32 {
        match self {
            Self::Vxlan { vni } => vni,
            Self::Udp => 0,
        }
    }

    /// As in the configuration of the programs.
    pub const fn of_config(self) -> u8 {
        match self {
            Self::Vxlan { .. } => TUNNEL_VXLAN,
            Self::Udp => TUNNEL_UDP,
        }
    }
}

impl Tunnel {
    /// UDP port of vxlan when the config leaves it open: the Linux default, not IANA's 4789.
    pub const DEFAULT_PORT: u16 = 8472;
}
