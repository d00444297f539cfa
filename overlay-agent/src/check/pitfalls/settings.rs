//! The kernel and its settings.

use crate::check::{
    facts::{Facts, Version},
    finding::Finding,
};

/// The oldest kernel that the programs are for, and the oldest with tcx links.
const OLDEST: Version = Version(5, 15, 0);

/// Routers forward, and nodes are routers.
pub fn forwarding(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for overlay in &facts.overlays {
        let (name, family) = if overlay.vtep.is_ipv4() {
            ("net.ipv4.ip_forward", "IPv4")
        } else {
            ("net.ipv6.conf.all.forwarding", "IPv6")
        };
        if facts.setting(name) == Some("0") {
            findings.push(Finding::error(
                "ip_forward",
                format!("{name} is 0: the kernel forwards no {family} packet of any pod"),
                format!("sysctl -w {name}=1, and a file below /etc/sysctl.d that says so"),
            ));
        }
    }
    findings
}

/// Services are translated by rules that packets between ports of one bridge see through `br_netfilter` only.
pub fn bridged_packets(facts: &Facts) -> Vec<Finding> {
    let is_kube_proxy = |rule: &str| rule.contains("-j KUBE-SERVICES");
    let mut saved = facts.rules.iptables.iter();
    let has_services = saved.any(|s| s.rules.iter().any(|(_, rule)| is_kube_proxy(rule)))
        || facts
            .rules
            .tables
            .iter()
            .any(|table| table.ends_with(" kube-proxy"));
    if !has_services || !facts.bridged {
        return Vec::new();
    }
    let seen = match facts.setting("net.bridge.bridge-nf-call-iptables") {
        Some("1") => return Vec::new(),
        Some(_) => "net.bridge.bridge-nf-call-iptables is 0",
        None => "the module br_netfilter is not loaded",
    };
    vec![Finding::warning(
        "br_netfilter",
        format!(
            "{seen}: a pod that asks a service and is answered by a pod of the same bridge drops the answer, \
             which comes from another address than it asked"
        ),
        "modprobe br_netfilter, and sysctl -w net.bridge.bridge-nf-call-iptables=1",
    )]
}

/// Strict filtering takes a packet only from the interface by which it would be answered.
pub fn reverse_path(facts: &Facts) -> Vec<Finding> {
    let value = |name: &str| {
        let text = facts.setting(&format!("net.ipv4.conf.{name}.rp_filter"));
        text.and_then(|text| text.parse::<u8>().ok()).unwrap_or(0)
    };
    let mut findings = Vec::new();
    for overlay in facts.overlays.iter().filter(|o| o.vtep.is_ipv4()) {
        let device = overlay.tier.device.as_ref().map(|device| &device.ifname);
        let underlay = overlay.underlay.as_ref().map(|underlay| &underlay.name);
        for name in device.into_iter().chain(underlay) {
            // The kernel takes the larger of the two.
            if value("all").max(value(name)) != 1 {
                continue;
            }
            let may_differ = overlay
                .tier
                .routes
                .iter()
                .any(|route| route.mode == "direct");
            let finding = if may_differ {
                Finding::warning
            } else {
                Finding::note
            };
            findings.push(finding(
                "rp_filter",
                format!(
                    "net.ipv4.conf.{name}.rp_filter is strict: a packet that comes by {name} and would be answered \
                     by another interface is dropped without a word, as when one node sends directly and the \
                     other through the tunnel"
                ),
                format!(
                    "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2"
                ),
            ));
        }
    }
    findings
}

/// New connections fail when the table is full.
pub fn conntrack_room(facts: &Facts) -> Vec<Finding> {
    let Some((entries, room)) = facts.conntrack.filter(|(_, room)| *room > 0) else {
        return Vec::new();
    };
    let percent = entries.saturating_mul(100) / room;
    let seen = format!("conntrack has {entries} of {room} entries, {percent} %");
    let advice = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}, and see whose connections they are: conntrack -L",
        room.saturating_mul(2)
    );
    match percent {
        0..80 => Vec::new(),
        80..95 => vec![Finding::warning(
            "conntrack_full",
            format!("{seen}: packets of new flows are dropped when it is full"),
            advice,
        )],
        _ => vec![Finding::error(
            "conntrack_full",
            format!("{seen}: packets of new flows are dropped, or soon will be"),
            advice,
        )],
    }
}

/// conntrack does not see the packets of the fast path.
pub fn liberal_tracking(facts: &Facts) -> Vec<Finding> {
    let is_strict = facts.setting("net.netfilter.nf_conntrack_tcp_be_liberal") == Some("0");
    if !facts.is_fast || !is_strict {
        return Vec::new();
    }
    vec![Finding::warning(
        "tcp_be_liberal",
        "net.netfilter.nf_conntrack_tcp_be_liberal is 0: conntrack does not see the segments of the fast path, \
         and takes those that follow for invalid, which many rule sets drop",
        "leave --conntrack-tcp-be-liberal as it is, or sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1",
    )]
}

/// A node without programs forwards as flannel does.
pub fn programs(facts: &Facts) -> Vec<Finding> {
    let Some(reason) = &facts.no_programs else {
        return Vec::new();
    };
    let advice = if facts.kernel < OLDEST {
        "a kernel of 5.15 or newer has what the programs need; --datapath=kernel says that none are wanted"
    } else {
        "see the reason in docs/troubleshooting.md; --datapath=kernel says that none are wanted"
    };
    vec![Finding::warning(
        "no_programs",
        format!("every packet takes the kernel's way: {reason}"),
        advice,
    )]
}
