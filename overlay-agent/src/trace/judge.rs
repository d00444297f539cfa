//! What follows from the facts, in the order in which the packet meets things. Pure.

use std::net::IpAddr;

use serde::Serialize;

use super::{
    facts::{End, Facts, Interface, Peer, Pod, Route},
    fast::Fast,
    packet::{Packet, Translated},
    rules::Passage,
};

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing that was asked stands in its way.
    Passes,
    /// It passes, and something is wrong all the same.
    Troubled,
    /// It does not get further than the step that says so.
    Stopped,
    /// Something in its way could not be found out, or it has no way here.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Warning,
    Stopped,
    Unknown,
}

/// A part of its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub name: &'static str,
    pub state: State,
    pub text: String,
    /// By which it goes, or comes.
    pub interface: Option<String>,
    /// Largest packet of a pod that fits here, bytes.
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    pub packet: Packet,
    /// `from a pod here to another node`.
    pub way: &'static str,
    pub verdict: Verdict,
    pub steps: Vec<Step>,
    pub fast: Fast,
    /// Largest packet that fits all the way, as far as this node knows; `None` (JSON `null`) if it knows nothing.
    pub mtu: Option<u32>,
    /// What could not be asked, in sentences.
    pub not_asked: Vec<String>,
}

impl Verdict {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passes => "passes",
            Self::Troubled => "troubled",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

impl Step {
    fn new(name: &'static str, state: State, text: impl Into<String>) -> Self {
        Self {
            name,
            state,
            text: text.into(),
            interface: None,
            mtu: None,
        }
    }

    fn at(self, interface: Option<&Interface>, mtu: Option<u32>) -> Self {
        Self {
            interface: interface.map(|interface| interface.name.clone()),
            mtu,
            ..self
        }
    }
}

/// Judges the packet.
pub fn judge(facts: Facts) -> Judged {
    let way = way(&facts);
    let mut steps = Vec::new();
    match facts.overlay {
        None => steps.push(Step::new(
            "node",
            State::Unknown,
            "this node has no overlay of the packet's family, or it is not configured yet",
        )),
        Some(_) if facts.source != End::Host && is_apart(&facts) => steps.push(Step::new(
            "node",
            State::Unknown,
            "neither end is a pod of this node or the node itself: ask on the node that has one",
        )),
        Some(_) => steps.extend(along(&facts)),
    }
    let mtu = steps.iter().filter_map(|step| step.mtu).min();
    let has = |state| steps.iter().any(|step: &Step| step.state == state);
    let verdict = if has(State::Stopped) {
        Verdict::Stopped
    } else if has(State::Unknown) {
        Verdict::Unknown
    } else if has(State::Warning) {
        Verdict::Troubled
    } else {
        Verdict::Passes
    };
    Judged {
        packet: facts.packet,
        way,
        verdict,
        steps,
        fast: facts.fast,
        mtu,
        not_asked: facts.missing,
    }
}

fn is_apart(facts: &Facts) -> bool {
    let is_here = |end| matches!(end, End::PodHere | End::Host);
    !is_here(facts.source) && !is_here(facts.destination)
}

fn way(facts: &Facts) -> &'static str {
    match (facts.source, facts.destination) {
        (End::PodHere, End::PodHere) => "from a pod here to a pod here",
        (End::PodHere, End::PodElsewhere) => "from a pod here to a pod of another node",
        (End::PodHere, End::Host) => "from a pod here to this node",
        (End::PodHere, End::Outside) => "from a pod here to no pod",
        (End::PodElsewhere, End::PodHere) => "from a pod of another node to a pod here",
        (End::PodElsewhere, End::Host) => "from a pod of another node to this node",
        (End::Outside, End::PodHere) => "from no pod to a pod here",
        (End::Host, End::PodHere) => "from this node to a pod here",
        (End::Host, End::PodElsewhere) => "from this node to a pod of another node",
        _ => "not by way of this node's pods",
    }
}

fn along(facts: &Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    let arrives = matches!(facts.source, End::PodElsewhere);
    if facts.source == End::PodHere {
        steps.push(pod("sender", facts.packet.source, facts.sender.as_ref()));
    }
    if arrives {
        steps.extend(between_nodes(facts));
    }
    steps.extend(facts.connection.map(connection));
    steps.extend(translation(facts));
    let is_local = facts.source == End::PodHere && facts.destination == End::PodHere;
    if is_local && is_bridged(facts) {
        steps.push(Step::new(
            "route",
            State::Ok,
            "both pods are behind one bridge: it forwards the packet, and the host does not route it",
        ));
    } else {
        steps.push(route("route", facts.route.as_ref()));
        steps.extend(facts.rules.as_ref().map(|passage| rules("rules", passage)));
    }
    if facts.destination == End::PodHere {
        steps.push(pod(
            "receiver",
            facts.packet.destination,
            facts.receiver.as_ref(),
        ));
    }
    if !arrives && is_for_peer(facts) {
        steps.extend(between_nodes(facts));
    }
    steps.extend(size(facts, &steps));
    steps
}

fn is_bridged(facts: &Facts) -> bool {
    let gateways = facts.sender.as_ref().zip(facts.receiver.as_ref());
    gateways.is_some_and(|(one, other)| one.gateway == other.gateway)
}

fn is_for_peer(facts: &Facts) -> bool {
    facts.destination == End::PodElsewhere || facts.peer.is_some()
}

fn pod(name: &'static str, address: IpAddr, pod: Option<&Pod>) -> Step {
    let Some(pod) = pod else {
        let text = format!("no interface of this node leads to {address}: there is no such pod");
        return Step::new(name, State::Stopped, text);
    };
    let Some(interface) = &pod.interface else {
        let text = format!(
            "{} does not know {address}: nobody has talked to it of late, or there is no such pod. Ping it and ask \
             again",
            pod.gateway.name
        );
        return Step::new(name, State::Unknown, text).at(Some(&pod.gateway), None);
    };
    let mac = pod.mac.as_deref().map(|mac| format!(" ({mac})"));
    let behind = if interface.name == pod.gateway.name {
        String::new()
    } else {
        format!(" at {}", pod.gateway.name)
    };
    let text = format!(
        "{address}{} is behind {}{behind}",
        mac.unwrap_or_default(),
        interface.name
    );
    let mtu = interface.mtu.min(pod.gateway.mtu);
    let down = [interface, &pod.gateway].into_iter().find(|i| !i.is_up);
    let step = match (down, &pod.unserved) {
        (Some(down), _) => Step::new(
            name,
            State::Stopped,
            format!("{text}; {} is down", down.name),
        ),
        (None, Some(kind)) => Step::new(
            name,
            State::Ok,
            format!("{text}, a {kind}, which the programs do not serve"),
        ),
        (None, None) => Step::new(name, State::Ok, text),
    };
    step.at(Some(interface), Some(mtu))
}

fn connection(is_answered: bool) -> Step {
    let text = if is_answered {
        "conntrack knows its connection, and has seen answers"
    } else {
        "conntrack knows its connection, and has seen no answer"
    };
    Step::new("connection", State::Ok, text)
}

fn translation(facts: &Facts) -> Option<Step> {
    let Some(translation) = facts.translation else {
        return (facts.destination == End::Outside).then(|| {
            let text = "no translation is remembered: rules of nat decide with the first packet whether it is for a \
                        service";
            Step::new("translation", State::Ok, text)
        });
    };
    let end = match translation.of {
        Translated::Source => "source",
        Translated::Destination => "destination",
    };
    let text = format!(
        "netfilter makes its {end} {}, says {}",
        translation.to, translation.known_by
    );
    Some(Step::new("translation", State::Ok, text))
}

fn route(name: &'static str, route: Option<&Result<Route, String>>) -> Step {
    match route {
        None => Step::new(name, State::Unknown, "the kernel was not asked"),
        Some(Err(reason)) => {
            let text = format!("the kernel has no route for it: {reason}");
            Step::new(name, State::Stopped, text)
        }
        Some(Ok(route)) if route.is_local => {
            Step::new(name, State::Ok, "it is for this node itself")
        }
        Some(Ok(route)) => {
            let Some(interface) = &route.interface else {
                return Step::new(name, State::Stopped, "the route leads nowhere");
            };
            let via = match route.gateway {
                Some(gateway) => format!("by {} to {gateway}", interface.name),
                None => format!("by {}", interface.name),
            };
            let mac = route.neighbour.as_deref().map(|mac| format!(" ({mac})"));
            let step = if interface.is_up {
                Step::new(name, State::Ok, format!("{via}{}", mac.unwrap_or_default()))
            } else {
                Step::new(name, State::Stopped, format!("{via}, which is down"))
            };
            step.at(Some(interface), route.room())
        }
    }
}

fn rules(name: &'static str, passage: &Passage) -> Step {
    match passage {
        Passage::Accepted => Step::new(name, State::Ok, "no rule drops it"),
        Passage::Dropped { by } => Step::new(name, State::Stopped, format!("{by} drops it")),
        Passage::Unclear { by } => {
            let text = format!("{by} may drop it: its text does not tell");
            Step::new(name, State::Unknown, text)
        }
    }
}

/// The peer, the tunnel and what is below it.
fn between_nodes(facts: &Facts) -> Vec<Step> {
    let Some(found) = &facts.peer else {
        let text =
            "no node leases the subnet of that address: nobody has it, or its lease has run out";
        return vec![Step::new("peer", State::Stopped, text)];
    };
    let mut steps = vec![peer(found)];
    let overhead = if found.is_tunnelled {
        steps.extend(tunnel(facts, found));
        facts.overlay.as_ref().map_or(0, |overlay| overlay.overhead)
    } else {
        0
    };
    if let Some(passage) = &facts.outer_rules {
        steps.push(rules("tunnel rules", passage));
    }
    if let Some(underlay) = &facts.underlay {
        let mut step = route("underlay", Some(underlay));
        step.mtu = step.mtu.map(|mtu| mtu.saturating_sub(overhead));
        steps.push(step);
    }
    steps
}

fn peer(peer: &Peer) -> Step {
    let end = match (peer.vtep, peer.is_tunnelled) {
        (Some(vtep), true) => format!("{} is at {vtep}, through the tunnel", peer.subnet),
        (Some(vtep), false) => format!("{} is at {vtep}, reached directly", peer.subnet),
        (None, _) => format!("{} is behind the device, which knows where", peer.subnet),
    };
    if !peer.has_kernel_route {
        let text = format!("{end}; the kernel's route to it is missing: the agent puts it back");
        return Step::new("peer", State::Warning, text);
    }
    match &peer.trouble {
        Some((state, meaning)) => {
            let text = format!("{end}; probes say {state}: {meaning}");
            Step::new("peer", State::Warning, text)
        }
        None => Step::new("peer", State::Ok, end),
    }
}

fn tunnel(facts: &Facts, peer: &Peer) -> Option<Step> {
    let overlay = facts.overlay.as_ref()?;
    let Some(device) = &overlay.device else {
        return Some(Step::new(
            "tunnel",
            State::Stopped,
            "the tunnel device is gone",
        ));
    };
    let vtep = peer.vtep?;
    let ends = if facts.source == End::PodElsewhere {
        format!("{vtep} → {}", overlay.vtep)
    } else {
        format!("{} → {vtep}", overlay.vtep)
    };
    let form = match (overlay.port, overlay.vni) {
        (Some(port), Some(vni)) => format!(", udp port {port}, VNI {vni}"),
        (Some(port), None) => format!(", udp port {port}"),
        _ => String::new(),
    };
    let text = format!("{ends}{form}, {} bytes of headers", overlay.overhead);
    let step = match peer.kernel_vtep {
        _ if !device.is_up => Step::new(
            "tunnel",
            State::Stopped,
            format!("{text}; {} is down", device.name),
        ),
        Some(other) => Step::new(
            "tunnel",
            State::Warning,
            format!("{text}; the kernel's forwarding entry leads to {other}"),
        ),
        None => Step::new("tunnel", State::Ok, text),
    };
    Some(step.at(Some(device), Some(device.mtu)))
}

/// Whether what pods send fits.
fn size(facts: &Facts, steps: &[Step]) -> Option<Step> {
    let (narrowest, mtu) = { steps.iter() }
        .filter_map(|step| Some((step, step.mtu?)))
        .min_by_key(|(_, mtu)| *mtu)?;
    let sent = match facts.source {
        End::PodHere => facts.sender.as_ref()?.interface.as_ref()?.mtu,
        End::PodElsewhere => facts.overlay.as_ref()?.pod_mtu?,
        // The kernel itself knows what fits.
        End::Host | End::Outside => return None,
    };
    let place = narrowest.interface.as_deref().unwrap_or(narrowest.name);
    let step = if mtu < sent {
        let text = format!(
            "pods send up to {sent} bytes, and {place} ({}) takes {mtu}: larger packets are fragmented, or lost where \
             they must not be",
            narrowest.name
        );
        Step::new("size", State::Warning, text)
    } else {
        let text = format!("packets of up to {mtu} bytes fit, and pods send no larger ones");
        Step::new("size", State::Ok, text)
    };
    Some(step)
}
