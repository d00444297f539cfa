//! The ratios and times to reach.

use super::{
    figure::Figure,
    variant::{
        BRIDGELESS, CROWDED, DIRECT, FLOOR, HOST_GW, HOST_GW_RULES, HOST_GW_SERVICE, NETKIT, NODE,
        OFF, OFF_ALTERED, OFF_SERVICE, STRICT, STRICT_ALTERED, STRICT_HOST, STRICT_IPV6,
        STRICT_SERVICE, STRICT_SERVICE_IPV6, STRICT_SUMMED, TRUSTED, UDP_OFF, UDP_STOCK,
        UDP_STRICT, VXLAN, VXLAN_HOST, VXLAN_IPV6, VXLAN_RULES, VXLAN_SERVICE, VXLAN_SERVICE_IPV6,
        Variant,
    },
};

/// On which side of the bound to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// `figure` of `variant`, as a ratio to that of `against` or, without one, as it is.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub figure: Figure,
    pub variant: &'static Variant,
    pub against: Option<&'static Variant>,
    pub bound: Option<Bound>,
}

const fn ratio(
    figure: Figure,
    variant: &'static Variant,
    against: &'static Variant,
    bound: Bound,
) -> Target {
    Target {
        figure,
        variant,
        against: Some(against),
        bound: Some(bound),
    }
}

const fn absolute(figure: Figure, bound: Bound) -> Target {
    Target {
        figure,
        variant: STRICT,
        against: None,
        bound: Some(bound),
    }
}

/// A ratio that is reported and has no target.
const fn reported(figure: Figure, variant: &'static Variant, against: &'static Variant) -> Target {
    Target {
        figure,
        variant,
        against: Some(against),
        bound: None,
    }
}

use Bound::{AtLeast, AtMost};
use Figure::{
    BulkCpu, Connections, EgressTime, ForwarderCpu, IngressTime, PingP50, PingP99, Questions,
    SegmentedCpu, UdpCpu, UdpReceived,
};

pub const ALL: [Target; 63] = [
    ratio(UdpCpu, STRICT, VXLAN_RULES, AtMost(0.31)),
    ratio(UdpCpu, STRICT, HOST_GW_RULES, AtMost(0.46)),
    ratio(UdpCpu, STRICT, VXLAN, AtMost(0.44)),
    ratio(UdpCpu, STRICT, NODE, AtMost(1.32)),
    ratio(UdpCpu, STRICT, FLOOR, AtMost(1.08)),
    ratio(UdpCpu, DIRECT, FLOOR, AtMost(1.08)),
    reported(UdpCpu, FLOOR, NODE),
    ratio(UdpCpu, STRICT, TRUSTED, AtMost(1.06)),
    reported(UdpCpu, DIRECT, HOST_GW),
    reported(UdpCpu, BRIDGELESS, STRICT),
    reported(UdpCpu, NETKIT, BRIDGELESS),
    reported(UdpReceived, STRICT, VXLAN_RULES),
    reported(UdpReceived, STRICT, VXLAN),
    ratio(PingP50, STRICT, VXLAN_RULES, AtMost(0.48)),
    reported(PingP50, STRICT, FLOOR),
    ratio(PingP50, STRICT, HOST_GW, AtMost(0.80)),
    reported(PingP99, STRICT, VXLAN_RULES),
    reported(PingP50, BRIDGELESS, STRICT),
    reported(PingP50, NETKIT, BRIDGELESS),
    ratio(Connections, STRICT, VXLAN_RULES, AtLeast(1.30)),
    ratio(Questions, STRICT, VXLAN_RULES, AtLeast(1.30)),
    reported(Questions, STRICT, OFF),
    ratio(BulkCpu, STRICT, VXLAN, AtMost(0.75)),
    ratio(SegmentedCpu, STRICT, VXLAN, AtMost(0.90)),
    ratio(UdpCpu, OFF, VXLAN_RULES, AtMost(1.02)),
    ratio(PingP50, OFF, VXLAN_RULES, AtMost(1.02)),
    ratio(Connections, OFF, VXLAN_RULES, AtLeast(0.98)),
    absolute(EgressTime, AtMost(130.0)),
    absolute(IngressTime, AtMost(70.0)),
    ratio(UdpCpu, CROWDED, STRICT, AtMost(1.03)),
    ratio(PingP50, CROWDED, STRICT, AtMost(1.03)),
    ratio(Connections, CROWDED, STRICT, AtLeast(0.97)),
    ratio(BulkCpu, CROWDED, STRICT, AtMost(1.03)),
    ratio(SegmentedCpu, CROWDED, STRICT, AtMost(1.03)),
    ratio(EgressTime, CROWDED, STRICT, AtMost(1.03)),
    ratio(IngressTime, CROWDED, STRICT, AtMost(1.03)),
    ratio(UdpCpu, STRICT_SERVICE, STRICT, AtMost(1.10)),
    ratio(UdpCpu, STRICT_SERVICE, VXLAN_SERVICE, AtMost(0.45)),
    reported(UdpCpu, STRICT_SERVICE, HOST_GW_SERVICE),
    ratio(PingP50, STRICT_SERVICE, STRICT, AtMost(1.10)),
    ratio(PingP50, STRICT_SERVICE, VXLAN_SERVICE, AtMost(0.60)),
    reported(PingP50, STRICT_SERVICE, OFF_SERVICE),
    ratio(Connections, STRICT_SERVICE, VXLAN_SERVICE, AtLeast(1.30)),
    reported(Connections, STRICT_SERVICE, OFF_SERVICE),
    ratio(Questions, STRICT_SERVICE, VXLAN_SERVICE, AtLeast(1.30)),
    reported(Questions, STRICT_SERVICE, OFF_SERVICE),
    ratio(UdpCpu, STRICT_ALTERED, OFF_ALTERED, AtMost(1.03)),
    ratio(PingP50, STRICT_HOST, VXLAN_HOST, AtMost(0.80)),
    reported(UdpCpu, STRICT_HOST, VXLAN_HOST),
    reported(Connections, STRICT_HOST, VXLAN_HOST),
    reported(UdpCpu, STRICT_IPV6, VXLAN_IPV6),
    reported(PingP50, STRICT_IPV6, VXLAN_IPV6),
    reported(Connections, STRICT_IPV6, VXLAN_IPV6),
    reported(Questions, STRICT_IPV6, VXLAN_IPV6),
    reported(UdpCpu, STRICT_SERVICE_IPV6, VXLAN_SERVICE_IPV6),
    reported(PingP50, STRICT_SERVICE_IPV6, VXLAN_SERVICE_IPV6),
    reported(Connections, STRICT_SERVICE_IPV6, VXLAN_SERVICE_IPV6),
    reported(Questions, STRICT_SERVICE_IPV6, VXLAN_SERVICE_IPV6),
    ratio(UdpCpu, UDP_STRICT, STRICT_SUMMED, AtMost(1.05)),
    reported(PingP50, UDP_STRICT, STRICT_SUMMED),
    reported(UdpReceived, UDP_STRICT, UDP_OFF),
    ratio(ForwarderCpu, UDP_OFF, UDP_STOCK, AtMost(0.33)),
    reported(UdpReceived, UDP_OFF, UDP_STOCK),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_met_by_its_own_value() {
        assert!(AtMost(0.5).is_met(0.5) && !AtMost(0.5).is_met(0.51));
        assert!(AtLeast(1.2).is_met(1.2) && !AtLeast(1.2).is_met(1.19));
    }

    #[test]
    fn every_target_compares_what_is_measured() {
        for target in ALL {
            let metric = target.figure.metric();
            for variant in [Some(target.variant), target.against].into_iter().flatten() {
                assert!(metric.applies_to(variant), "{target:?}");
            }
        }
    }
}
