//! Policy routing by marks of pods' packets sends their tunnel packets by another gateway.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::{addr::MacAddr, outcome::Hook};
use overlay_tests::{
    differ::{Mode, in_both_modes},
    in_both_families,
    lab::{Lab, underlay::UNDERLAY_MTU},
    netns::Namespace,
    traffic::{Endpoint, flow::SteadyFlow},
    wait::wait_for,
};

use crate::family::{CONFIG, DEADLINE, Header, sent};

const INTERVAL: Duration = Duration::from_millis(5);
/// Tunnel packets to look at, of each pod.
const PACKETS: usize = 200;
const MARK: &str = "7";

/// Addresses for a second gateway on the first segment, a second leg of the router.
trait Gateway: Header {
    const SECOND: Self;
}

impl Gateway for Ipv4Addr {
    const SECOND: Self = Self::new(172, 30, 0, 2);
}

impl Gateway for Ipv6Addr {
    const SECOND: Self = Self::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 2);
}

/// Gives the router another leg on the first segment and returns its MAC address. It has no address of
/// its own: whoever uses it knows it.
fn add_gateway(lab: &Lab) -> Result<MacAddr> {
    let (hub, router) = (lab.underlay().hub(), lab.underlay().router());
    hub.ip_batch(&format!(
        "link add second mtu {UNDERLAY_MTU} type veth \
             peer name second mtu {UNDERLAY_MTU} netns {}\n\
         link set second master seg0 up\n",
        router.name()
    ))?;
    for interface in ["all", "second"] {
        router.set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    router.set_sysctl("net/ipv6/conf/second/forwarding", "1")?;
    router.ip_batch("link set second up\n")?;
    router.mac("second")
}

/// Sends the packets of the first node that have the mark to `peer` by the second gateway.
fn route_marked<A: Gateway>(node: &Namespace, peer: A, gateway: MacAddr) -> Result<()> {
    let (second, mac, peer) = (A::SECOND.to_string(), gateway.to_string(), peer.to_string());
    let ip = |words: &[&str]| {
        let words = [&[A::IP], words].concat();
        node.run("ip", words).map(drop)
    };
    ip(&[
        "neigh",
        "add",
        &second,
        "lladdr",
        &mac,
        "dev",
        "eth0",
        "nud",
        "permanent",
    ])?;
    ip(&[
        "route", "add", "default", "via", &second, "dev", "eth0", "table", "100",
    ])?;
    ip(&["rule", "add", "fwmark", MARK, "to", &peer, "table", "100"])
}

/// The gateways that tunnel packets of each pod were sent to.
type Gateways = BTreeMap<&'static str, Vec<&'static str>>;

fn gateways<A: Gateway>(lab: &Lab, mode: Mode) -> Result<Gateways> {
    let [node, far] = lab.nodes() else {
        anyhow::bail!("not two nodes")
    };
    let second = add_gateway(lab)?;
    let first = lab.underlay().router_mac(0)?;
    let pods: [Endpoint<A>; 4] = A::add_pods(lab, &['a', 'b'])?
        .try_into()
        .ok()
        .context("two nodes with two pods each")?;
    let [marked, unmarked, peer, other_peer] = pods;
    for veth in ["vetha", "vethb"] {
        node.wait_attached(veth)?;
        far.wait_attached(veth)?;
    }
    let source = marked.address.to_string();
    let rule = [
        "-t",
        "mangle",
        "-A",
        "PREROUTING",
        "-s",
        &source,
        "-j",
        "MARK",
        "--set-mark",
        MARK,
    ];
    node.cmd(A::IPTABLES, rule)?;
    route_marked(&node.namespace, A::host(far).address, second)?;

    let flows = [(&marked, &peer), (&unmarked, &other_peer)]
        .map(|(from, to)| SteadyFlow::start(from, to, INTERVAL));
    let flows = flows.into_iter().collect::<Result<Vec<_>>>()?;
    // Before Linux 6.10 nobody can ask which way a marked packet goes.
    let share = match (mode, release()? >= (6, 10)) {
        (Mode::Off, _) => 0,
        (Mode::Fast | Mode::Trusted, true) => 90,
        (Mode::Fast | Mode::Trusted, false) => 40,
    };
    wait_for("the fast path to carry the flows", DEADLINE, || {
        let before = node.counters()?;
        std::thread::sleep(INTERVAL * 50);
        let counted = node.counters()?.since(&before);
        let (fast, all) = (counted.fast(Hook::Egress), counted.overlay(Hook::Egress));
        ensure!(all >= 20 && fast * 100 >= all * share, "counted\n{counted}");
        Ok(())
    })?;
    let wire = node.capture_wire()?;
    let before = flows.iter().map(SteadyFlow::sent).collect::<Vec<_>>();
    wait_for("tunnel packets", DEADLINE, || {
        for (flow, before) in flows.iter().zip(&before) {
            let sent = flow.sent() - before;
            ensure!(sent as usize >= PACKETS, "{sent} datagrams");
        }
        Ok(())
    })?;
    let frames = wire.stop()?;
    for flow in flows {
        flow.stop()?.datagrams.ensure_lossless()?;
    }
    let mut found = Gateways::new();
    for (name, pod) in [("marked", &marked), ("unmarked", &unmarked)] {
        let packets = sent::<A>(&frames);
        let of_pod = packets
            .iter()
            .filter(|packet| packet.inner.source == pod.address);
        let mut next_hops: Vec<_> = of_pod.map(|packet| packet.next_hop).collect();
        ensure!(next_hops.len() >= PACKETS / 2, "{name}: {next_hops:?}");
        next_hops.sort();
        next_hops.dedup();
        let gateways = next_hops.into_iter().map(|mac| match mac {
            mac if mac == first => "first",
            mac if mac == second => "second",
            _ => "another",
        });
        found.insert(name, gateways.collect());
    }
    Ok(found)
}

/// Major and minor version of the running kernel.
fn release() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("kernel release {release}"),
    }
}

fn marked_and_unmarked_flows_go_by_their_own_gateways<A: Gateway>() -> Result<()> {
    let builder = Lab::builder().nodes(1).routed_nodes(1).config(CONFIG);
    let [fast, off] = in_both_modes(&builder, &[], gateways::<A>);
    let wanted: Gateways = [("marked", vec!["second"]), ("unmarked", vec!["first"])].into();
    ensure!(
        fast == wanted && off == wanted,
        "with the fast path {fast:?}, without {off:?}"
    );
    Ok(())
}

in_both_families! { addresses:
    marked_and_unmarked_flows_go_by_their_own_gateways,
}
