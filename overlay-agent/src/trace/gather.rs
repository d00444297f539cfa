//! Asks the kernel, the maps and the running agent about one packet. Nothing is changed and nothing sent.

mod filter;
mod peers;
mod pods;
mod programs;
mod routes;
mod scene;

pub use self::scene::Places;
use self::{
    filter::{Way, outer_rules},
    peers::peer,
    pods::FoundPod,
    programs::Programs,
    routes::Asked,
    scene::Scene,
};
use super::{
    facts::{End, Facts, Translation},
    fast::{Fast, Side},
    packet::{Packet, Protocol, Translated},
};
use crate::{
    check,
    conntrack::connection::{self, Connection},
    filter::exec::Executor,
    netlink::{Link, NetlinkError, RouteQuestion},
    view::Snapshot,
};

/// The facts about `packet`.
pub async fn gather(packet: Packet, places: &Places) -> Result<Facts, NetlinkError> {
    let snapshot = Snapshot::read(&places.pins).await;
    let mut missing = snapshot.kernel.missing.clone();
    let scene = Scene::look(&packet, &snapshot, places, &mut missing).await?;
    let [source, destination] = [packet.source, packet.destination].map(|ip| scene.end(ip));
    let connection = known_connection(&packet, &mut missing).await;
    let programs = match &snapshot.ebpf {
        Ok(tier) => Programs::read(&places.pins, tier, &mut missing),
        Err(_) => None,
    };
    let side = side(source, destination);
    let translation = { connection.as_ref() }
        .and_then(|connection| translated(&packet, connection))
        .or_else(|| programs.as_ref()?.translation(&packet, side?));
    let inside = match translation {
        Some(Translation {
            of: Translated::Destination,
            to,
            ..
        }) => packet.to(to),
        _ => packet,
    };
    let other_end = match source {
        End::PodElsewhere => packet.source,
        _ => inside.destination,
    };
    let sender = match source {
        End::PodHere => scene.pod(packet.source).await?,
        _ => None,
    };
    let receiver = match scene.end(inside.destination) {
        End::PodHere => scene.pod(inside.destination).await?,
        _ => None,
    };
    let peer = match scene.end(other_end) {
        End::PodElsewhere => peer(&snapshot, other_end, &mut missing),
        _ => None,
    };
    let underlay = match peer.as_ref().and_then(|peer| peer.vtep) {
        Some(vtep) => Some(scene.underlay(vtep).await?),
        None => None,
    };
    let incoming = match source {
        End::Host => None,
        End::PodHere => sender.as_ref().map(|found| found.gateway.clone()),
        End::PodElsewhere if peer.as_ref().is_some_and(|peer| peer.is_tunnelled) => scene.device(),
        End::PodElsewhere => underlay.as_ref().and_then(Asked::link),
        End::Outside => {
            let back = scene.route(&RouteQuestion::to(packet.source)).await?;
            back.link()
        }
    };
    let question = RouteQuestion {
        destination: inside.destination,
        source: Some(packet.source),
        incoming: incoming.as_ref().map(|link| link.ifindex),
        protocol: Some(packet.protocol_number()),
        ports: match packet.protocol {
            Protocol::Icmp => [None; 2],
            _ => [packet.source_port, inside.destination_port],
        },
    };
    let is_askable = source == End::Host || incoming.is_some();
    let route = if is_askable {
        Some(scene.route(&question).await?)
    } else {
        None
    };
    let listed = check::rules::read(&Executor::from_env(), &mut missing).await;
    let way = Way {
        incoming: incoming.as_ref(),
        outgoing: route.as_ref().and_then(Asked::link),
        is_local: route.as_ref().is_some_and(Asked::is_local),
        is_established: connection.is_some_and(|connection| connection.is_answered),
        source,
    };
    let fast = match side {
        None => Fast::never(never(source, destination)),
        Some(side) => {
            let pod = match side {
                Side::Egress => sender.as_ref(),
                Side::Ingress => receiver.as_ref(),
            };
            let at = match side {
                Side::Egress => pod.and_then(|pod| pod.port.as_ref()).cloned(),
                Side::Ingress => underlay.as_ref().and_then(Asked::link),
            };
            fast(
                &snapshot,
                programs.as_ref(),
                &packet,
                side,
                pod,
                at.as_ref(),
            )
        }
    };
    Ok(Facts {
        packet,
        source,
        destination: scene.end(inside.destination),
        overlay: scene.overlay(),
        sender: sender.map(FoundPod::told),
        receiver: receiver.map(FoundPod::told),
        translation,
        connection: connection.map(|connection| connection.is_answered),
        rules: route.as_ref().and_then(|_| way.rules(&listed, &inside)),
        outer_rules: outer_rules(&listed, &scene, peer.as_ref(), underlay.as_ref(), source),
        route: route.map(Asked::told),
        underlay: underlay.map(Asked::told),
        peer,
        fast,
        missing,
    })
}

/// Whose program would forward the packet; `None` if none does.
const fn side(source: End, destination: End) -> Option<Side> {
    match (source, destination) {
        (End::PodHere, End::PodElsewhere | End::Outside) => Some(Side::Egress),
        (End::PodElsewhere, End::PodHere) => Some(Side::Ingress),
        _ => None,
    }
}

const fn never(source: End, destination: End) -> &'static str {
    match (source, destination) {
        (End::PodHere, End::PodHere) => "packets between pods of one node do not leave it",
        (End::Host, _) | (_, End::Host) => "the node's own packets are the kernel's",
        _ => "it is not between pods of two nodes",
    }
}

async fn known_connection(packet: &Packet, missing: &mut Vec<String>) -> Option<Connection> {
    let number = packet.protocol_number();
    let is_its = |connection: &Connection| {
        let is = |[source, destination]: [_; 2]| packet.is_between(source, destination);
        connection.protocol == number && (is(connection.original) || is(connection.reply))
    };
    match connection::find(is_its).await {
        Ok(found) => found,
        Err(error) => {
            missing.push(format!("connections are left out: {error}"));
            None
        }
    }
}

/// What netfilter makes of the packet's ends, by its connection.
fn translated(packet: &Packet, connection: &Connection) -> Option<Translation> {
    let Connection {
        original, reply, ..
    } = connection;
    let known_by = "conntrack";
    let [source, destination] = *original;
    let (of, before, to) = if packet.is_between(source, destination) {
        if reply[0] == destination {
            (Translated::Source, source, reply[1])
        } else {
            (Translated::Destination, destination, reply[0])
        }
    } else {
        (Translated::Source, reply[0], destination)
    };
    (before != to).then_some(Translation { of, to, known_by })
}

/// What the programs would do.
fn fast(
    snapshot: &Snapshot,
    programs: Option<&Programs<'_>>,
    packet: &Packet,
    side: Side,
    pod: Option<&FoundPod>,
    at: Option<&Link>,
) -> Fast {
    if let Err(error) = &snapshot.ebpf {
        return Fast::never(format!("there are no programs here: {error}"));
    }
    let Some(programs) = programs else {
        return Fast::never("what the programs know could not be read");
    };
    if let Some(kind) = pod.and_then(FoundPod::unserved) {
        return Fast::never(format!(
            "the pod's interface is a {kind}, which the programs do not serve"
        ));
    }
    match at {
        None => Fast::never("the interface at which a program would see it is not known"),
        Some(at) if !programs.are_at(at.ifindex, side) => {
            Fast::never(format!("there is no program at {}", at.name))
        }
        Some(_) => programs.judge(packet, side),
    }
}
