//! Whatever others have of tc sees each packet that is not fast: while it is where the short way passes by,
//! nothing goes that.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_agent::datapath::sys::Place;
use overlay_tests::{
    differ::{Mode, in_mode},
    in_both_families,
    lab::{Lab, Node, underlay::NODE_INTERFACE},
    rules::Protocol,
    services::{Server, is_unreachable},
    tcx,
    traffic::Endpoint,
    wait::wait_for,
};

use crate::{
    family::{BOUND, DEADLINE, Header, pods, two_nodes},
    short_way::counted,
};

const PORT: u16 = 8080;
/// New flows of one look.
const COUNT: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(2);

/// Of [`counted`].
const OUT: usize = 0;
const IN: usize = 1;

/// Something of somebody else.
struct Other {
    /// What `status` says of it.
    said: &'static str,
    /// The direction of packets that would pass it by.
    direction: usize,
    /// Adds it, and returns what it goes with, if there is anything.
    add: fn(&Node, tunnel: &str) -> Result<Option<OwnedFd>>,
    remove: fn(&Node, tunnel: &str) -> Result<()>,
}

const OF_TC: [Other; 3] = [
    Other {
        said: "outwards: a queueing discipline at the tunnel device",
        direction: OUT,
        add: |node, tunnel| tc(node, &format!("qdisc add dev {tunnel} root pfifo")),
        remove: |node, tunnel| tc(node, &format!("qdisc del dev {tunnel} root")).map(drop),
    },
    Other {
        said: "outwards: a tc filter of others at the tunnel device",
        direction: OUT,
        add: |node, tunnel| add_filter(node, tunnel, "egress"),
        remove: |node, tunnel| remove_filter(node, tunnel, "egress"),
    },
    Other {
        said: "inwards: a tc filter of others at the underlay",
        direction: IN,
        add: |node, _| add_filter(node, NODE_INTERFACE, "ingress"),
        remove: |node, _| remove_filter(node, NODE_INTERFACE, "ingress"),
    },
];

const OF_TCX: [Other; 2] = [
    Other {
        said: "outwards: a tcx program of others at the tunnel device",
        direction: OUT,
        add: |node, tunnel| tcx::attach(node, tunnel, Place::TcxEgress).map(Some),
        remove: |_, _| Ok(()),
    },
    Other {
        said: "inwards: a tcx program of others at the underlay",
        direction: IN,
        add: |node, _| tcx::attach(node, NODE_INTERFACE, Place::TcxIngress).map(Some),
        remove: |_, _| Ok(()),
    },
];

fn tc(node: &Node, command: &str) -> Result<Option<OwnedFd>> {
    node.cmd("tc", command.split_whitespace()).map(|_| None)
}

fn add_filter(node: &Node, interface: &str, side: &str) -> Result<Option<OwnedFd>> {
    tc(node, &format!("qdisc replace dev {interface} clsact"))?;
    let filter =
        format!("filter add dev {interface} {side} protocol all u32 match u32 0 0 flowid 1:1");
    tc(node, &filter)
}

/// Leaves the qdisc, which is nothing that sees packets.
fn remove_filter(node: &Node, interface: &str, side: &str) -> Result<()> {
    tc(node, &format!("filter del dev {interface} {side}")).map(drop)
}

/// Asks by new flows. Returns how many packets went the short way at the node meanwhile, out and in.
fn went<A: Header>(node: &Node, from: &Endpoint<A>, server: &Server) -> Result<[u64; 2]> {
    let before = counted(node)?;
    for _ in 0..COUNT {
        let is_lost = is_unreachable(from, Protocol::Udp, server.address, PATIENCE)?;
        ensure!(!is_lost, "no answer");
    }
    let after = counted(node)?;
    Ok([OUT, IN].map(|direction| after[direction] - before[direction]))
}

/// Asks until a change must count.
fn ask_on<A: Header>(node: &Node, from: &Endpoint<A>, server: &Server) -> Result<()> {
    let changed = Instant::now();
    while changed.elapsed() < BOUND {
        went(node, from, server)?;
    }
    Ok(())
}

fn wait_for_the_way<A: Header>(node: &Node, from: &Endpoint<A>, server: &Server) -> Result<()> {
    wait_for("the short way", DEADLINE, || {
        let went = went(node, from, server)?;
        let is_open = went.iter().all(|&packets| packets >= COUNT / 2);
        ensure!(is_open, "packets that went it, out and in: {went:?}");
        Ok(())
    })
}

fn close_the_short_way<A: Header>(others: &[Other]) {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let server = Server::start(&server, Protocol::Udp, PORT)?;
        let node = lab.node(0);
        for other in others {
            let said = other.said;
            wait_for_the_way(node, &client, &server).with_context(|| format!("before {said}"))?;
            let attached = (other.add)(node, A::TUNNEL)?;
            ask_on(node, &client, &server)?;
            let went = went(node, &client, &server)?;
            let status = node.operator(&["status"])?;
            drop(attached);
            (other.remove)(node, A::TUNNEL)?;
            let past = went[other.direction];
            ensure!(past == 0, "{said}: {past} packets went past it");
            ensure!(status.contains(said), "not {said}:\n{status}");
        }
        wait_for_the_way(node, &client, &server).context("after all of them")?;
        let status = node.operator(&["status"])?;
        ensure!(!status.contains("no short way"), "{status}");
        Ok(())
    });
}

fn qdiscs_and_filters_of_others_close_it<A: Header>() {
    close_the_short_way::<A>(&OF_TC);
}

fn tcx_programs_of_others_close_it<A: Header>() {
    close_the_short_way::<A>(&OF_TCX);
}

/// Those that packets of the short way get to.
fn filters_on_its_way_leave_it_open<A: Header>() {
    in_mode(&two_nodes(), &[], Mode::Fast, |lab: &Lab, _| {
        let [client, server] = pods::<A>(lab)?;
        let server = Server::start(&server, Protocol::Udp, PORT)?;
        let node = lab.node(0);
        add_filter(node, A::TUNNEL, "ingress")?;
        add_filter(node, NODE_INTERFACE, "egress")?;
        ask_on(node, &client, &server)?;
        wait_for_the_way(node, &client, &server)
    });
}

in_both_families! { addresses:
    qdiscs_and_filters_of_others_close_it,
    tcx_programs_of_others_close_it,
    filters_on_its_way_leave_it_open,
}
