//! The XDP guard on the underlay of a lab: where it is attached, what it lets pass, and what a flood
//! of bad packets comes to.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use overlay_common::{
    maps,
    outcome::{Counter, Hook, Outcome, slot},
};
use overlay_tests::{
    capture::Capture,
    differ::raw::RawPort,
    in_both_families,
    lab::{Lab, Node, scenario, underlay::NODE_INTERFACE},
    traffic::{Endpoint, connection::SteadyConnection, flow::SteadyFlow, ping, udp},
    wait::wait_for,
};
use serde_json::Value;

use crate::family::Forged;

in_both_families! { addresses:
    a_flood_of_bad_packets_is_dropped_and_counted_by_the_native_guard_while_pods_talk,
    a_flood_of_bad_packets_is_dropped_and_counted_by_the_generic_guard_while_pods_talk,
    what_is_not_this_networks_passes_the_native_guard,
    what_is_not_this_networks_passes_the_generic_guard,
}

const DEADLINE: Duration = Duration::from_secs(15);
const VXLAN_PORT: u16 = 8472;
/// Bad packets under way at a time: with what else is under way, less than the ring of a veth that
/// runs XDP, which has 256 places.
const WINDOW: u64 = 96;
/// When a window is not counted for so long, packets were lost.
const STALLED: Duration = Duration::from_secs(2);

/// Two nodes with a pod each, and a third host on their segment that is nobody's peer. Returns the pods.
fn bring_up<A: Forged>(lab: &Lab, arguments: &[&str]) -> Result<[Endpoint<A>; 2]> {
    let (one, other) = (lab.node(0), lab.node(1));
    for node in [one, other] {
        lab.start_agent(node, arguments)?;
    }
    A::wait_converged(lab)?;
    Ok([A::add_pod(one, 'a')?, A::add_pod(other, 'a')?])
}

/// How the kernel runs XDP on a node's underlay: 1 natively, 2 generically.
fn xdp_mode(node: &Node) -> Result<Option<u64>> {
    let links = node.cmd("ip", ["-json", "link", "show", "dev", NODE_INTERFACE])?;
    let links: Value = serde_json::from_str(&links)?;
    Ok(links[0]["xdp"]["mode"].as_u64())
}

#[test]
fn the_guard_is_attached_as_asked_and_goes_with_the_next_start_without_it() {
    scenario(Lab::builder().nodes(3), |lab| {
        let [near, far] = bring_up::<Ipv4Addr>(lab, &["--xdp=auto"])?;
        let node = lab.node(0);
        let modes = [
            ("--xdp=native", Some(1)),
            ("--xdp=generic", Some(2)),
            ("--xdp=off", None),
            ("--xdp=native", Some(1)),
            // A veth is no hardware.
            ("--xdp=auto", None),
        ];
        ensure!(xdp_mode(node)?.is_none(), "auto attaches to a veth");
        let start = |argument: &str, mode| {
            node.stop_agent()?;
            lab.start_agent(node, &[argument])?;
            wait_for(argument, DEADLINE, || {
                lab.check_converged(node)?;
                let found = xdp_mode(node)?;
                ensure!(found == mode, "XDP mode {found:?}, not {mode:?}");
                let link = node.attached(NODE_INTERFACE)?.get("guard").copied();
                ensure!(link.is_some() == mode.is_some(), "pinned guard: {link:?}");
                Ok(link)
            })
        };
        for (argument, mode) in modes {
            let link = start(argument, mode)?;
            // Attaching costs packets where the driver sets up its queues for it.
            let again = start(argument, mode)?;
            ensure!(again == link, "{argument}: link {link:?} became {again:?}");
            ping::all(&near, far.address, 20)?;
        }
        Ok(())
    });
}

/// Frames of one attacker to one node.
struct Forge<A> {
    port: RawPort,
    destination: [u8; 6],
    vtep: A,
    stranger: A,
    peer: A,
}

impl<A: Forged> Forge<A> {
    fn new(lab: &Lab) -> Result<Self> {
        let (victim, peer, attacker) = (lab.node(0), lab.node(1), lab.node(2));
        Ok(Self {
            port: RawPort::at(&attacker.namespace, NODE_INTERFACE)?,
            destination: victim.mac(NODE_INTERFACE)?.octets,
            vtep: A::host(victim).address,
            stranger: A::host(attacker).address,
            peer: A::host(peer).address,
        })
    }

    fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let addresses = [&self.destination[..], &self.port.mac.octets];
        [&addresses.concat(), &A::ETHER_TYPE[..], packet].concat()
    }

    fn datagram(&self, source: A, port: u16, payload: &[u8]) -> Vec<u8> {
        self.frame(&A::datagram([source, self.vtep], [40_000, port], payload))
    }

    fn tunnel(&self, source: A, flags: u8, vni: u8) -> Vec<u8> {
        self.datagram(source, VXLAN_PORT, &vxlan(flags, vni))
    }

    /// What the guard drops, with the reason.
    fn bad(&self) -> [(Outcome, Vec<u8>); 4] {
        let truncated = &vxlan(8, 1)[..15];
        [
            (Outcome::GuardPeer, self.tunnel(self.stranger, 8, 1)),
            (Outcome::GuardHeader, self.tunnel(self.peer, 0, 1)),
            (
                Outcome::GuardTruncated,
                self.datagram(self.peer, VXLAN_PORT, truncated),
            ),
            (
                Outcome::GuardTruncated,
                self.datagram(self.stranger, VXLAN_PORT, &[8]),
            ),
        ]
    }
}

/// A VXLAN header and a small frame in it.
fn vxlan(flags: u8, vni: u8) -> Vec<u8> {
    let mut payload = vec![flags, 0, 0, 0, 0, 0, vni, 0];
    payload.extend([0xff; 6]);
    payload.extend([2, 0, 0, 0, 0, 1, 8, 6]);
    payload.extend([0; 28]);
    payload
}

/// The guard's counters, read fast.
struct GuardCounters(PerCpuArray<MapData, Counter>);

impl GuardCounters {
    const DROPS: [Outcome; 3] = [
        Outcome::GuardPeer,
        Outcome::GuardHeader,
        Outcome::GuardTruncated,
    ];

    fn open(node: &Node) -> Result<Self> {
        let data = MapData::from_pin(node.map_pin(maps::STATS))?;
        Ok(Self(PerCpuArray::try_from(Map::PerCpuArray(data))?))
    }

    fn dropped(&self) -> Result<u64> {
        let mut sum = 0;
        for outcome in Self::DROPS {
            let cpus = self.0.get(&slot(Hook::Guard, outcome), 0)?;
            sum += cpus.iter().map(|counter| counter.packets).sum::<u64>();
        }
        Ok(sum)
    }
}

/// Sends [`Forged::FLOOD`] bad packets as fast as the node takes them; how many of each kind.
fn flood<A: Forged>(forge: &Forge<A>, counters: &GuardCounters) -> Result<[u64; 3]> {
    let bad = forge.bad();
    let frames: Vec<&[u8]> = bad.iter().map(|(_, frame)| &frame[..]).collect();
    let batch: Vec<_> = frames.iter().cycle().take(32).copied().collect();
    let per_batch = batch.len() as u64;
    let before = counters.dropped()?;
    let mut sent = 0;
    while sent < A::FLOOD {
        for frame in &batch {
            forge.port.send(frame)?;
        }
        sent += per_batch;
        let since = Instant::now();
        while counters.dropped()? - before + WINDOW < sent + per_batch {
            ensure!(
                since.elapsed() < STALLED,
                "{} of {sent} packets were counted",
                counters.dropped()? - before
            );
        }
    }
    wait_for("the last bad packets to be counted", STALLED, || {
        let counted = counters.dropped()? - before;
        ensure!(counted == sent, "{counted} of {sent} packets were counted");
        Ok(())
    })?;
    Ok(GuardCounters::DROPS.map(|reason| {
        let kinds = bad.iter().filter(|(outcome, _)| *outcome == reason);
        sent / bad.len() as u64 * kinds.count() as u64
    }))
}

/// What the fast path does meanwhile is up to the kernel: what generic XDP has copied reaches the
/// programs behind it without its Ethernet header, and is left to the kernel tier.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Fast,
    AnyTier,
}

fn hold_against_a_flood<A: Forged>(argument: &str, behind: Behind) {
    scenario(Lab::builder().nodes(3).config(A::CONFIG), |lab| {
        let [near, far] = bring_up::<A>(lab, &[argument])?;
        let victim = lab.node(0);
        wait_for("the guard", DEADLINE, || {
            let mode = xdp_mode(victim)?;
            ensure!(mode.is_some(), "no XDP program is attached");
            Ok(())
        })?;
        let datagrams = SteadyFlow::start(&far, &near, Duration::from_millis(2))?;
        let stream = SteadyConnection::open(&far, &near, Duration::from_millis(2))?;
        let forge = Forge::<A>::new(lab)?;
        let before = victim.counters()?;

        let start = Instant::now();
        let sent = flood(&forge, &GuardCounters::open(victim)?)?;
        let took = start.elapsed();
        let stream = stream.close()?;
        let datagrams = datagrams.stop()?.datagrams;

        let counted = victim.counters()?.since(&before);
        for (reason, sent) in GuardCounters::DROPS.into_iter().zip(sent) {
            let counted = counted.packets(Hook::Guard, reason);
            ensure!(
                counted == sent,
                "{}: {counted} counted, {sent} sent",
                reason.name()
            );
        }
        let passed = counted.packets(Hook::Ingress, Outcome::UnknownPeer);
        ensure!(passed == 0, "{passed} bad packets passed the guard");
        datagrams.ensure_lossless()?;
        // Both took part in the whole flood, whatever the machine did meanwhile.
        let expected = u64::try_from(took.as_millis())? / 100;
        ensure!(
            stream.exchanges > expected && u64::from(datagrams.sent) > expected,
            "{} exchanges and {} datagrams in {took:?}",
            stream.exchanges,
            datagrams.sent
        );
        ensure!(
            stream.longest < Duration::from_secs(1),
            "an exchange took {:?}",
            stream.longest
        );
        let fast = counted.fast(Hook::Ingress);
        ensure!(
            fast > expected || behind == Behind::AnyTier,
            "{fast} packets were fast during the flood:\n{counted}"
        );
        Ok(())
    });
}

fn a_flood_of_bad_packets_is_dropped_and_counted_by_the_native_guard_while_pods_talk<A: Forged>() {
    hold_against_a_flood::<A>("--xdp=native", Behind::Fast);
}

fn a_flood_of_bad_packets_is_dropped_and_counted_by_the_generic_guard_while_pods_talk<A: Forged>() {
    hold_against_a_flood::<A>("--xdp=generic", Behind::AnyTier);
}

const OTHER_VNI: u8 = 77;
const COUNT: usize = 500;

/// Packets an interface of a node has received.
fn received(node: &Node, interface: &str) -> Result<u64> {
    let links = node.cmd("ip", ["-json", "-s", "link", "show", "dev", interface])?;
    let links: Value = serde_json::from_str(&links)?;
    links[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .context("no statistics")
}

/// Makes the tags of frames to a node part of the frame, as on a wire: a card or veth may hand them
/// on beside it, and XDP does not see those.
fn put_tags_into_frames(lab: &Lab, node: &Node) -> Result<()> {
    let features = ["-K", &node.name, "txvlan", "off"];
    lab.underlay().hub().run("ethtool", features).map(drop)
}

fn pass_untouched<A: Forged>(argument: &str) {
    scenario(Lab::builder().nodes(3).config(A::CONFIG), |lab| {
        bring_up::<A>(lab, &[argument])?;
        let victim = lab.node(0);
        wait_for("the guard", DEADLINE, || {
            let mode = xdp_mode(victim)?;
            ensure!(mode.is_some(), "no XDP program is attached");
            Ok(())
        })?;
        put_tags_into_frames(lab, victim)?;
        // Whoever is to get what passes: another overlay on the same port, a socket.
        victim.namespace.ip_batch(&format!(
            "link add other type vxlan id {OTHER_VNI} dstport {VXLAN_PORT} local {} nolearning {}\n\
             link set other up\n",
            A::host(victim).address,
            A::AS_OURS
        ))?;
        let socket = udp::bind(&A::host(victim))?;
        let other_port = socket.local_addr()?.port();
        socket.set_read_timeout(Some(DEADLINE))?;
        let forge = Forge::<A>::new(lab)?;

        let other_vni = forge.tunnel(forge.stranger, 8, OTHER_VNI);
        let mut tagged = forge.tunnel(forge.stranger, 8, 1);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let plain = forge.datagram(forge.stranger, other_port, b"other UDP, whole");
        let addresses = [forge.stranger, forge.vtep];
        let optional = A::with_options(addresses, [40_000, other_port], b"behind options");
        let optional = forge.frame(&optional);
        // Put together behind the guard.
        let fragments = A::fragments(addresses, [40_000, other_port], &[7; 1_000]);
        let fragments = fragments.map(|packet| forge.frame(&packet));

        let before = victim.counters()?;
        let other_before = received(victim, "other")?;
        let capture = Capture::start(&victim.namespace, NODE_INTERFACE)?;
        let mut buffer = [0; 2_000];
        for _ in 0..COUNT {
            forge.port.send(&other_vni)?;
            forge.port.send(&tagged)?;
            forge.port.send(&plain)?;
            let len = socket.recv(&mut buffer).context("other UDP")?;
            ensure!(&buffer[..len] == b"other UDP, whole", "damaged");
            forge.port.send(&optional)?;
            let len = socket.recv(&mut buffer).context("behind options")?;
            ensure!(&buffer[..len] == b"behind options", "damaged");
            for fragment in &fragments {
                forge.port.send(fragment)?;
            }
            let len = socket.recv(&mut buffer).context("fragments")?;
            ensure!(buffer[..len] == [7; 1_000], "{len} bytes in fragments");
        }
        let count = u64::try_from(COUNT)?;
        let other = received(victim, "other")? - other_before;
        // The kernel takes the tag out before a socket sees the frame.
        let untagged = [&tagged[..12], &tagged[16..]].concat();
        let captured = capture.stop()?;
        let vlan = captured.iter().filter(|frame| frame.bytes == untagged);
        let vlan = vlan.count() as u64;
        ensure!(other == count, "{other} of {count} packets of another VNI");
        ensure!(vlan == count, "{vlan} of {count} tagged frames");
        let counted = victim.counters()?.since(&before);
        let dropped = counted.dropped();
        ensure!(dropped == 0, "{dropped} packets were dropped:\n{counted}");
        for (outcome, expected) in [
            (Outcome::VxlanHeader, count),
            (Outcome::Fragment, 2 * count),
        ] {
            let counted = counted.packets(Hook::Guard, outcome);
            ensure!(counted == expected, "{}: {counted}", outcome.name());
        }
        Ok(())
    });
}

fn what_is_not_this_networks_passes_the_native_guard<A: Forged>() {
    pass_untouched::<A>("--xdp=native");
}

fn what_is_not_this_networks_passes_the_generic_guard<A: Forged>() {
    pass_untouched::<A>("--xdp=generic");
}
