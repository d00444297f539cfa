//! What is not as it should be, in sentences that say what follows from it.

use std::collections::BTreeSet;

use overlay_common::{config::FASTPATH_OFF, maps::MAX_NODES, outcome::Hook};

use crate::{
    model::Family,
    names::interface_label,
    view::{EbpfTier, Overlay},
};

pub const NO_AGENT: &str =
    "no agent is running: packets are forwarded as before, but nobody follows changes";

pub fn problems(
    tier: &EbpfTier,
    bare_underlay: Option<&str>,
    interface_name: impl Fn(u32) -> Option<String>,
) -> Vec<String> {
    let mut problems = Vec::new();
    if !tier.agent_running {
        problems.push(NO_AGENT.into());
    }
    let (ipv4, ipv6) = (&tier.ipv4, &tier.ipv6);
    if ipv4.is_none() && ipv6.is_none() {
        problems.push("the node is not configured yet: no lease was acquired".into());
        return problems;
    }
    let label = |ifindex| interface_label(ifindex, interface_name(ifindex).as_deref());
    for link in tier.links.iter().filter(|link| !link.alive) {
        problems.push(format!(
            "{} on {} is detached: its packets take the kernel path",
            link.hook.name(),
            label(link.ifindex),
        ));
    }
    problems.extend(ipv4.as_ref().and_then(|overlay| full(overlay, "node map")));
    problems.extend(
        ipv6.as_ref()
            .and_then(|overlay| full(overlay, "IPv6 node map")),
    );
    if let Some(problem) = &tier.per_packet_rules.problem {
        problems.push(format!("every flow is left to the kernel: {problem}"));
    }
    // Where nothing is fast nothing is learned, and a backend without a fast path has no programs at all.
    let devices = [
        ipv4.as_ref().and_then(learning_device),
        ipv6.as_ref().and_then(learning_device),
    ];
    let learns = devices.iter().any(Option::is_some);
    if learns && at(tier, Hook::Ingress).is_empty() && bare_underlay.is_none() {
        problems.push("no program on the underlay interface: nothing arrives fast".into());
    }
    let (underlays, confirmed) = (at(tier, Hook::Ingress), at(tier, Hook::Confirm));
    for underlay in underlays.difference(&confirmed).filter(|_| learns) {
        problems.push(no_permits(Hook::Confirm, &label(*underlay)));
    }
    for device in devices.into_iter().flatten().filter(|&device| device != 0) {
        for hook in [Hook::Confirm, Hook::Arrive] {
            if !at(tier, hook).contains(&device) {
                problems.push(no_permits(hook, &label(device)));
            }
        }
    }
    let (from_pods, to_pods) = (at(tier, Hook::Egress), at(tier, Hook::Deliver));
    for ifindex in from_pods.symmetric_difference(&to_pods).filter(|_| learns) {
        problems.push(format!(
            "{} has only one of the two pod programs: one direction stays on the kernel path",
            label(*ifindex)
        ));
    }
    problems.extend(ipv4.iter().flat_map(without_node));
    problems.extend(ipv6.iter().flat_map(without_node));
    problems
}

/// The tunnel device of a family with a fast path, 0 if it has none.
fn learning_device<F: Family>(overlay: &Overlay<F>) -> Option<u32> {
    let config = &overlay.config;
    (config.fastpath != FASTPATH_OFF).then_some(config.vtep_ifindex)
}

fn no_permits(hook: Hook, interface: &str) -> String {
    format!(
        "no {} program on {interface}: no permits are granted",
        hook.name()
    )
}

/// The interfaces that have a link of the hook.
fn at(tier: &EbpfTier, hook: Hook) -> BTreeSet<u32> {
    let links = tier.links.iter().filter(|link| link.hook == hook);
    links.map(|link| link.ifindex).collect()
}

fn full<F: Family>(overlay: &Overlay<F>, map: &str) -> Option<String> {
    let peers = overlay.nodes.len();
    (peers + 1 >= MAX_NODES)
        .then(|| format!("the {map} is full: peers beyond these {peers} have the kernel tier only"))
}

fn without_node<F: Family>(overlay: &Overlay<F>) -> impl Iterator<Item = String> {
    let routes = overlay.routes.iter();
    routes
        .filter(|(_, route)| !overlay.nodes.contains_key(&route.node))
        .map(|(subnet, _)| format!("{subnet} has no node entry: the kernel carries its packets"))
}
