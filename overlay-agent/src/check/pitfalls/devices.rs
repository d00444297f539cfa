//! Interfaces: what they are, and what they are set to.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::{
    check::{
        facts::{Facts, Overlay, Version},
        finding::{Finding, first_few},
    },
    model::{Family as _, V4, V6},
};

/// Releases of Linux that translate tunnel packets without a checksum as if they had one, before the fix of
/// each series.
const UNFIXED: [(Version, Version); 4] = [
    (Version(5, 5, 0), Version(5, 6, 13)),
    (Version(4, 20, 0), Version(5, 4, 41)),
    (Version(4, 15, 0), Version(4, 19, 123)),
    (Version(0, 0, 1), Version(4, 14, 181)),
];
/// Drivers whose cards spoil checksums inside tunnels that have another UDP port than they know.
const SPOILERS: [&str; 3] = ["vmxnet3", "i40e", "be2net"];
/// Interfaces that are named.
const SHOWN: usize = 5;
/// UDP ports of vxlan that every card knows.
const KNOWN_PORT: u16 = 4789;

/// The kernel or the card leaves a wrong checksum in tunnel packets, and the other node drops them.
pub fn checksum_offload(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_on = |name: &str, feature: &str| {
        let known = facts.ethtool.get(name);
        known.is_some_and(|known| known.on.contains(feature))
    };
    let unfixed = UNFIXED
        .iter()
        .any(|(first, fixed)| (*first..*fixed).contains(&facts.kernel));
    for overlay in facts.overlays.iter().filter(|o| o.vni.is_some()) {
        let Some(device) = &overlay.tier.device else {
            continue;
        };
        let (name, feature) = (&device.ifname, "tx-checksum-ip-generic");
        let underlay = overlay.underlay.as_ref();
        let driver = underlay.and_then(|u| Some((u, &facts.ethtool.get(&u.name)?.driver)));
        if unfixed && is_on(name, feature) {
            findings.push(Finding::warning(
                "tx_checksum",
                format!(
                    "Linux {}.{}.{} gives tunnel packets that are masqueraded a wrong checksum while {name} has \
                     {feature} on: services hang for 63 s, or for good",
                    facts.kernel.0, facts.kernel.1, facts.kernel.2
                ),
                format!("another kernel, or ethtool -K {name} {feature} off at every boot"),
            ));
        }
        if let Some((underlay, driver)) = driver
            && SPOILERS.contains(&driver.as_str())
            && overlay.port != Some(KNOWN_PORT)
            && is_on(&underlay.name, "tx-udp_tnl-segmentation")
        {
            let underlay = &underlay.name;
            findings.push(Finding::warning(
                "tx_checksum",
                format!(
                    "{underlay} has the driver {driver} and segments tunnel packets itself: with UDP ports other \
                     than {KNOWN_PORT} some of these cards spoil the checksums inside, and the pods drop them"
                ),
                format!(
                    "if large transfers hang: ethtool -K {underlay} tx-udp_tnl-segmentation off \
                     tx-udp_tnl-csum-segmentation off; or \"Port\": {KNOWN_PORT} in the network config"
                ),
            ));
        }
    }
    findings
}

/// Tunnel packets are merged as if they were plain UDP.
pub fn gro_forwarding(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in underlays(facts) {
        let Some(known) = facts.ethtool.get(name) else {
            continue;
        };
        let features = ["rx-udp-gro-forwarding", "rx-gro-list"];
        for feature in features.into_iter().filter(|f| known.on.contains(*f)) {
            findings.push(Finding::warning(
                "udp_gro_forwarding",
                format!(
                    "{name} has {feature} on: tunnel packets for which there is no socket are glued together as \
                     plain UDP, and those of TCP are no longer merged by what is inside"
                ),
                format!("ethtool -K {name} {feature} off"),
            ));
        }
    }
    findings
}

/// Peers send to the MAC address in the lease.
pub fn mac_address(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for overlay in &facts.overlays {
        let (Some(device), Some(known)) = (&overlay.tier.device, &overlay.vtep_mac) else {
            continue;
        };
        let Some(mac) = device.vtep_mac.as_ref().filter(|mac| *mac != known) else {
            continue;
        };
        let name = &device.ifname;
        let (culprit, advice) = match &facts.mac_policy {
            Some((file, policy)) => (
                format!("; {file} has MACAddressPolicy={policy} for it"),
                "a file /etc/systemd/network/10-flannel.link with [Match] OriginalName=flannel* and \
                 [Link] MACAddressPolicy=none, and a running agent"
                    .to_owned(),
            ),
            None => (
                String::new(),
                "a running agent sets it back; its log names the device if something insists".to_owned(),
            ),
        };
        findings.push(Finding::error(
            "mac_address",
            format!(
                "{name} has MAC address {mac}, and peers know {known}: it drops whatever they send{culprit}"
            ),
            advice,
        ));
    }
    findings
}

/// Tunnel packets have to fit.
pub fn tunnel_mtu(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for overlay in facts.overlays.iter().filter(|o| o.vni.is_some()) {
        let (Some(device), Some(underlay)) = (&overlay.tier.device, &overlay.underlay) else {
            continue;
        };
        let overhead = overhead(overlay);
        if device.mtu.saturating_add(overhead) <= underlay.mtu {
            continue;
        }
        let fits = underlay.mtu.saturating_sub(overhead);
        findings.push(Finding::error(
            "tunnel_mtu",
            format!(
                "{} has MTU {}, and with the {overhead} bytes of the tunnel its packets do not fit into the {} of \
                 {}: large transfers hang",
                device.ifname, device.mtu, underlay.mtu, underlay.name
            ),
            format!(
                "\"MTU\" in the network config's Backend of at most {}, or none; the device should have {fits}",
                underlay.mtu
            ),
        ));
    }
    findings
}

/// Pods send packets as large as their interfaces take.
pub fn pod_mtu(facts: &Facts) -> Vec<Finding> {
    let limits = facts.overlays.iter().filter_map(|overlay| overlay.pod_mtu);
    let Some(limit) = limits.min() else {
        return Vec::new();
    };
    let is_larger = |name: &&String| {
        let mut links = facts.links.iter();
        links.any(|link| link.name == **name && link.mtu > limit)
    };
    let larger: Vec<&str> = { facts.pods.iter().filter(is_larger) }
        .map(String::as_str)
        .collect();
    if larger.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "pod_mtu",
        format!(
            "{} for pods may be larger than the {limit} bytes that other nodes take: what is larger is cut up \
             or refused, and hangs where the refusal gets lost",
            first_few(&larger, SHOWN)
        ),
        format!(
            "have whoever makes them read FLANNEL_MTU of the subnet file: --mtu={limit} for Docker"
        ),
    )]
}

/// Whoever starts containers reads the file.
pub fn subnet_file(facts: &Facts) -> Vec<Finding> {
    let Some(file) = facts.subnet_env.as_ref().filter(|_| facts.is_a_node()) else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    let limits = facts.overlays.iter().filter_map(|overlay| overlay.pod_mtu);
    if let (Some(said), Some(limit)) = (file.mtu, limits.min())
        && said != limit
    {
        wrong.push(format!("FLANNEL_MTU={said}, and it is {limit}"));
    }
    for overlay in &facts.overlays {
        let (name, said) = if overlay.vtep.is_ipv4() {
            ("FLANNEL_SUBNET", file.said.ipv4_subnet.map(IpNetwork::from))
        } else {
            (
                "FLANNEL_IPV6_SUBNET",
                file.said.ipv6_subnet.map(IpNetwork::from),
            )
        };
        if let (Some(said), Some(subnet)) = (said, overlay.subnet)
            && said != subnet
        {
            wrong.push(format!("{name}={said}, and it is {subnet}"));
        }
    }
    if wrong.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "subnet_file",
        format!("{} says {}", file.path, wrong.join("; ")),
        "the agent writes it again within 30 s; containers that were started meanwhile have to be started anew",
    )]
}

fn overhead(overlay: &Overlay) -> u32 {
    if overlay.vtep.is_ipv4() {
        V4::OVERHEAD
    } else {
        V6::OVERHEAD
    }
}

fn underlays(facts: &Facts) -> BTreeSet<&str> {
    let underlays = facts.overlays.iter().filter_map(|o| o.underlay.as_ref());
    underlays.map(|underlay| underlay.name.as_str()).collect()
}
