//! The ways from pod to pod that are compared.

use overlay_common::{
    encap::{DATAGRAM_LEN, ENCAP_LEN},
    encap6::ENCAP6_LEN,
};

use crate::{
    lab::Attachment,
    netkit::{self, NetkitMode},
};

/// How packets reach the other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// The kernel objects of stock flannel's vxlan backend.
    StockVxlan,
    /// Those of its host-gw backend: plain routes.
    StockHostGw,
    /// The cheapest programs there can be, which carry the packets of two pods and no others.
    Floor,
    /// The agent, with this value of `--fastpath`.
    Agent {
        fastpath: &'static str,
        direct_routing: bool,
    },
    /// The same with the udp backend.
    AgentUdp { fastpath: &'static str },
    /// Stock flanneld with its udp backend: a program that somebody has given.
    StockUdp,
}

/// One way.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent property of the comparison"
)]
pub struct Variant {
    pub name: &'static str,
    pub overlay: Overlay,
    /// flannel's masquerade and forward rules, and with them conntrack.
    pub rules: bool,
    /// Traffic between the nodes instead of between their pods.
    pub between_nodes: bool,
    /// A thousand nodes, 250 pods on each of the two, 100 000 flows.
    pub crowded: bool,
    /// A rule on each node changes the pod's own port of the measured flow: no permit is ever granted.
    pub altered: bool,
    /// The client is a process of its node.
    pub from_host: bool,
    /// The client asks a service, as kube-proxy's iptables rules on its node make one.
    pub service: bool,
    /// Pods talk by IPv6, of a network that has both families.
    pub ipv6: bool,
    /// How pods hang off their nodes.
    pub attachment: Attachment,
    /// What leaves by the wire has its checksums, as the udp backend needs it.
    pub summed: bool,
}

const fn variant(name: &'static str, overlay: Overlay, rules: bool) -> Variant {
    Variant {
        name,
        overlay,
        rules,
        between_nodes: false,
        crowded: false,
        altered: false,
        from_host: false,
        service: false,
        ipv6: false,
        attachment: Attachment::Bridge,
        summed: false,
    }
}

const fn agent(name: &'static str, fastpath: &'static str) -> Variant {
    let overlay = Overlay::Agent {
        fastpath,
        direct_routing: false,
    };
    variant(name, overlay, true)
}

pub const VXLAN_RULES: &Variant = &variant("vxlan, as deployed", Overlay::StockVxlan, true);
pub const VXLAN: &Variant = &variant("vxlan, no rules", Overlay::StockVxlan, false);
pub const HOST_GW_RULES: &Variant = &variant("host-gw, as deployed", Overlay::StockHostGw, true);
pub const HOST_GW: &Variant = &variant("host-gw, no rules", Overlay::StockHostGw, false);
pub const NODE: &Variant = &Variant {
    between_nodes: true,
    ..variant("node to node", Overlay::StockHostGw, false)
};
pub const FLOOR: &Variant = &variant("floor", Overlay::Floor, false);
pub const STRICT: &Variant = &agent("overlay strict", "strict");
/// Pods as the CNI plugin makes them itself.
pub const BRIDGELESS: &Variant = &Variant {
    attachment: Attachment::PointToPoint,
    ..agent("overlay strict, no bridge", "strict")
};
pub const NETKIT: &Variant = &Variant {
    attachment: Attachment::Netkit(NetkitMode::L2),
    ..agent("overlay strict, netkit", "strict")
};
pub const TRUSTED: &Variant = &agent("overlay trusted", "trusted");
pub const DIRECT: &Variant = &variant(
    "overlay direct",
    Overlay::Agent {
        fastpath: "strict",
        direct_routing: true,
    },
    true,
);
pub const OFF: &Variant = &agent("overlay off", "off");
pub const CROWDED: &Variant = &Variant {
    crowded: true,
    ..agent("overlay strict, 1000 nodes", "strict")
};
pub const STRICT_ALTERED: &Variant = &Variant {
    altered: true,
    ..agent("overlay strict, altered flow", "strict")
};
pub const OFF_ALTERED: &Variant = &Variant {
    altered: true,
    ..agent("overlay off, altered flow", "off")
};
pub const VXLAN_HOST: &Variant = &Variant {
    from_host: true,
    ..variant(
        "vxlan, as deployed, from the host",
        Overlay::StockVxlan,
        true,
    )
};
pub const STRICT_HOST: &Variant = &Variant {
    from_host: true,
    ..agent("overlay strict, from the host", "strict")
};
pub const VXLAN_SERVICE: &Variant = &Variant {
    service: true,
    ..variant("vxlan, as deployed, service", Overlay::StockVxlan, true)
};
pub const HOST_GW_SERVICE: &Variant = &Variant {
    service: true,
    ..variant("host-gw, as deployed, service", Overlay::StockHostGw, true)
};
pub const STRICT_SERVICE: &Variant = &Variant {
    service: true,
    ..agent("overlay strict, service", "strict")
};
pub const OFF_SERVICE: &Variant = &Variant {
    service: true,
    ..agent("overlay off, service", "off")
};

pub const VXLAN_IPV6: &Variant = &Variant {
    ipv6: true,
    ..variant("vxlan, as deployed, IPv6", Overlay::StockVxlan, true)
};
pub const STRICT_IPV6: &Variant = &Variant {
    ipv6: true,
    ..agent("overlay strict, IPv6", "strict")
};
pub const VXLAN_SERVICE_IPV6: &Variant = &Variant {
    service: true,
    ipv6: true,
    ..variant(
        "vxlan, as deployed, service, IPv6",
        Overlay::StockVxlan,
        true,
    )
};
pub const STRICT_SERVICE_IPV6: &Variant = &Variant {
    service: true,
    ipv6: true,
    ..agent("overlay strict, service, IPv6", "strict")
};

pub const STRICT_SUMMED: &Variant = &Variant {
    summed: true,
    ..agent("overlay strict, no checksum offload", "strict")
};
pub const UDP_STRICT: &Variant = &Variant {
    summed: true,
    ..variant(
        "overlay strict, udp",
        Overlay::AgentUdp { fastpath: "strict" },
        true,
    )
};
pub const UDP_OFF: &Variant = &Variant {
    summed: true,
    ..variant(
        "overlay off, udp",
        Overlay::AgentUdp { fastpath: "off" },
        true,
    )
};
pub const UDP_STOCK: &Variant = &Variant {
    summed: true,
    ..variant("flannel udp, as deployed", Overlay::StockUdp, true)
};

/// In the order of the tables.
pub const ALL: [&Variant; 29] = [
    VXLAN_RULES,
    VXLAN,
    HOST_GW_RULES,
    HOST_GW,
    NODE,
    FLOOR,
    STRICT,
    BRIDGELESS,
    NETKIT,
    TRUSTED,
    DIRECT,
    OFF,
    CROWDED,
    VXLAN_SERVICE,
    HOST_GW_SERVICE,
    STRICT_SERVICE,
    OFF_SERVICE,
    STRICT_ALTERED,
    OFF_ALTERED,
    VXLAN_HOST,
    STRICT_HOST,
    VXLAN_IPV6,
    STRICT_IPV6,
    VXLAN_SERVICE_IPV6,
    STRICT_SERVICE_IPV6,
    STRICT_SUMMED,
    UDP_STRICT,
    UDP_OFF,
    UDP_STOCK,
];

/// The kinds of pods.
pub const PODS: [&Variant; 3] = [STRICT, BRIDGELESS, NETKIT];

impl Variant {
    /// Bytes of the tunnel's headers on its packets on the wire.
    pub fn headers(&self) -> u32 {
        let vxlan = if self.ipv6 { ENCAP6_LEN } else { ENCAP_LEN };
        match self.overlay {
            Overlay::StockVxlan => vxlan,
            Overlay::StockHostGw | Overlay::Floor => 0,
            Overlay::Agent { direct_routing, .. } => {
                if direct_routing {
                    0
                } else {
                    vxlan
                }
            }
            Overlay::AgentUdp { .. } | Overlay::StockUdp => DATAGRAM_LEN,
        }
    }

    /// Why it cannot be had on this kernel.
    pub fn missing(&self) -> Option<String> {
        matches!(self.attachment, Attachment::Netkit(_))
            .then(netkit::missing)
            .flatten()
    }

    pub fn is_agent(&self) -> bool {
        matches!(
            self.overlay,
            Overlay::Agent { .. } | Overlay::AgentUdp { .. }
        )
    }

    /// Whether a process carries the measured packets.
    pub fn is_in_user_space(&self) -> bool {
        match self.overlay {
            Overlay::AgentUdp { fastpath } => fastpath == "off",
            overlay => overlay == Overlay::StockUdp,
        }
    }

    /// Whether a pod talks to a pod by IPv4, and nothing translates what they say.
    pub fn is_plain(&self) -> bool {
        !self.altered && !self.service && !self.from_host && !self.ipv6
    }

    /// Whether the fast path is to carry the measured flow.
    pub fn is_fast(&self) -> bool {
        match self.overlay {
            Overlay::Agent { fastpath, .. } | Overlay::AgentUdp { fastpath } => {
                fastpath != "off" && !self.altered
            }
            Overlay::StockVxlan | Overlay::StockHostGw | Overlay::Floor | Overlay::StockUdp => {
                false
            }
        }
    }
}
