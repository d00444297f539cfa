//! Marks and priorities that rules give packets are on fast packets, and on those of the short way, when they
//! leave the underlay.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    differ::{Mode, in_both_modes},
    in_both_families,
    lab::{Lab, Node, counters::Counters, underlay::NODE_INTERFACE},
    rules::Protocol,
    services::{Server, is_unreachable},
    traffic::{Endpoint, udp},
};

use crate::family::{Header, pods, two_nodes};

/// Datagrams of one look, each with an answer.
const COUNT: u32 = 100;
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(2);
/// The class of the queueing discipline that packets are sorted into, and the mark that sorts them.
const CLASS: &str = "1:20";
const MARK: u32 = 42;

/// A queueing discipline with a class that only packets of a priority or a mark get into.
fn set_up(node: &Node) -> Result<()> {
    // Load the mark (`SKF_AD_MARK`), compare it, and return -1, for the class that the filter names, or 0.
    let filter = format!("4,32 0 0 4294963220,21 0 1 {MARK},6 0 0 4294967295,6 0 0 0");
    let tc = |object: &str, words: &[&str]| {
        let place = [object, "add", "dev", NODE_INTERFACE];
        node.cmd("tc", [&place, words].concat()).map(drop)
    };
    tc("qdisc", &["root", "handle", "1:", "htb", "default", "30"])?;
    for class in [CLASS, "1:30"] {
        let rate = ["htb", "rate", "10gbit", "quantum", "60000"];
        tc(
            "class",
            &[&["parent", "1:", "classid", class][..], &rate].concat(),
        )?;
    }
    let parent = ["parent", "1:", "protocol", "all", "bpf", "bytecode"];
    tc(
        "filter",
        &[&parent[..], &[&filter, "flowid", CLASS]].concat(),
    )
}

/// Packets that were sorted into the class.
fn classed(node: &Node) -> Result<u64> {
    let text = node.cmd("tc", ["-s", "class", "show", "dev", NODE_INTERFACE])?;
    let class = text.split(&format!("class htb {CLASS} ")).nth(1);
    let before = class.and_then(|class| class.split(" pkt").next());
    let digits = before.and_then(|before| before.rsplit(' ').next());
    let digits = digits.with_context(|| text.clone())?;
    digits.parse().with_context(|| text.clone())
}

/// What is looked at.
#[derive(Clone, Copy)]
enum Datagrams {
    /// Of one flow, which the fast path takes.
    OfOne,
    /// Each of a flow of its own, which go the short way.
    OfMany,
}

impl Datagrams {
    /// Sends as many as there are in a look.
    fn send<A: Header>(self, from: &Endpoint<A>, to: &Endpoint<A>, server: &Server) -> Result<()> {
        match self {
            Self::OfOne => udp::echo_each(from, to, &[100], COUNT)?.ensure_lossless(),
            Self::OfMany => {
                for _ in 0..COUNT {
                    let is_lost = is_unreachable(from, Protocol::Udp, server.address, PATIENCE)?;
                    ensure!(!is_lost, "no answer");
                }
                Ok(())
            }
        }
    }

    /// How many went as they should. The first one is the kernel's, and again after a flush.
    fn check(self, counted: &Counters) -> Result<()> {
        let (went, least) = match self {
            Self::OfOne => (counted.fast(Hook::Egress), COUNT * 9 / 10),
            Self::OfMany => (counted.packets(Hook::Confirm, Outcome::ShortWay), COUNT / 2),
        };
        ensure!(went >= least.into(), "{went} went, not {least}: {counted}");
        Ok(())
    }
}

/// How many of the tunnel packets had what each rule gives them.
fn counts<A: Header>(lab: &Lab, mode: Mode, datagrams: Datagrams) -> Result<Vec<(String, u64)>> {
    let [from, to] = pods::<A>(lab)?;
    let node = lab.node(0);
    set_up(node)?;
    let server = Server::start(&to, Protocol::Udp, PORT)?;
    let source = from.address.to_string();
    let class = ["-j", "CLASSIFY", "--set-class", CLASS];
    let mark = MARK.to_string();
    let mark = ["-j", "MARK", "--set-mark", &mark];
    // Of pods' packets, and of the tunnel packets.
    let inner = ["-s", &source];
    let outer = ["-p", "udp", "--dport", "8472"];
    let rules: [(&str, &[&str], [&str; 4]); 5] = [
        ("FORWARD", &inner, class),
        ("POSTROUTING", &outer, class),
        ("PREROUTING", &inner, mark),
        ("OUTPUT", &outer, mark),
        ("POSTROUTING", &outer, mark),
    ];
    let mut found = Vec::new();
    for (chain, which, target) in rules {
        let rule = |action| {
            let rule = [&["-t", "mangle", action, chain], which, &target[..]].concat();
            node.cmd(A::IPTABLES, rule).map(drop)
        };
        rule("-A")?;
        let (before, counters) = (classed(node)?, node.counters()?);
        datagrams.send(&from, &to, &server)?;
        if mode != Mode::Off {
            let counted = node.counters()?.since(&counters);
            datagrams
                .check(&counted)
                .with_context(|| format!("{chain} {target:?}"))?;
        }
        found.push((format!("{} in {chain}", target[1]), classed(node)? - before));
        rule("-D")?;
    }
    Ok(found)
}

fn are_the_kernels<A: Header>(datagrams: Datagrams) -> Result<()> {
    let [fast, off] = in_both_modes(&two_nodes(), &[], |lab, mode| {
        counts::<A>(lab, mode, datagrams)
    });
    ensure!(
        fast == off && fast.iter().all(|&(_, count)| count == u64::from(COUNT)),
        "with the fast path {fast:#?}\nwithout {off:#?}"
    );
    Ok(())
}

fn fast_packets_are_marked_and_classed_as_the_kernels<A: Header>() -> Result<()> {
    are_the_kernels::<A>(Datagrams::OfOne)
}

fn packets_of_the_short_way_are_marked_and_classed_as_the_kernels<A: Header>() -> Result<()> {
    are_the_kernels::<A>(Datagrams::OfMany)
}

in_both_families! { addresses:
    packets_of_the_short_way_are_marked_and_classed_as_the_kernels,
    fast_packets_are_marked_and_classed_as_the_kernels,
}
