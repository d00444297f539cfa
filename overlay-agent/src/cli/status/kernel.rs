//! What the kernel tier says, for people.

use crate::view::{KernelTier, PeerRoute, Tier};

/// What is not as it should be, in sentences that say what follows from it.
pub fn problems(kernel: &KernelTier) -> Vec<String> {
    let families = [("IPv4", &kernel.ipv4), ("IPv6", &kernel.ipv6)];
    let mut problems = Vec::new();
    for (family, tier) in families {
        let Some(Tier { device, routes }) = tier else {
            continue;
        };
        if let Some(device) = device.as_ref().filter(|device| !device.up) {
            problems.push(format!(
                "{} is down: {family} pods reach nobody through the tunnel",
                device.ifname
            ));
        }
        // A device without link-layer addresses needs nothing beside its routes.
        let needs_ends = device.as_ref().is_none_or(|d| d.vtep_mac.is_some());
        let lacks_end = |route: &&PeerRoute| route.vtep.is_none() && needs_ends;
        for route in routes.iter().filter(lacks_end) {
            problems.push(format!(
                "{} has a route and no tunnel end: its packets are dropped",
                route.subnet
            ));
        }
    }
    problems
}

/// The lines about a family of which the maps say nothing. Their names begin with `prefix`.
pub fn lines(tier: &Tier, prefix: &str) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push((format!("{prefix}{name}"), value));
    if let Some(device) = &tier.device {
        let vtep = device.vtep.map_or("-".to_owned(), |vtep| vtep.to_string());
        let mac = device.vtep_mac.as_deref().unwrap_or("-");
        line("vtep", format!("{vtep} ({mac}) on {}", device.ifname));
        line("mtu", device.mtu.to_string());
        // Over IPv4 it is always taken.
        if device.vni.is_some() && device.vtep.is_none_or(|vtep| vtep.is_ipv6()) {
            let taken = if device.zero_checksum {
                "taken"
            } else {
                "dropped"
            };
            line("csum 0", taken.to_owned());
        }
    }
    line("routes", format!("{}, in the kernel", tier.routes.len()));
    lines
}
