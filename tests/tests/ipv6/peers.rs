//! IPv6 tunnels to peers of all kinds: fast packets, which have no UDP checksum, go to those whose
//! lease says that they take them, and to nobody else, from the moment a lease changes.

use std::{
    net::Ipv6Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    capture::{Direction, Frame},
    decode6::udp_checksum_to,
    lab::{Lab, Wire, scenario, store::LeaseRecord, underlay::NODE_INTERFACE},
    traffic::{Endpoint, connection::SteadyConnection, flow::SteadyFlow, ping6, tcp, udp},
    wait::wait_for,
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const STOCK: &str = "10.5.200.0/24&fd00:10:5:200::/64";
const STOCK_KEY: &str = "10.5.200.0-24&fd00:10:5:200::-64";
const DEADLINE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(2);
/// From the change of a lease until no packet is sent that the peer no longer takes.
const PROMPT: Duration = Duration::from_secs(1);
/// How long nothing must be fast to say that nothing is.
const QUIET: Duration = Duration::from_millis(200);

/// UDP checksums of the tunnel packets in frames of one direction.
fn checksums(frames: &[Frame], direction: Direction) -> Vec<u16> {
    let frames = frames.iter().filter(|frame| frame.direction == direction);
    frames
        .filter_map(|frame| udp_checksum_to(&frame.bytes, 8472))
        .collect()
}

#[test]
fn a_stock_peer_gets_checksums_and_what_it_sends_is_decapsulated_fast() {
    let builder = Lab::builder().nodes(2).config(DUAL).wire(Wire::Segmented);
    scenario(builder, |lab| {
        let (node, peer) = (lab.node(0), lab.node(1));
        lab.start_agent(node, &[])?;
        lab.start_stock(peer, STOCK)?;
        lab.wait_converged6()?;
        let (ours, theirs) = (node.add_pod6('a')?, peer.add_pod6('a')?);
        ping6::all(&ours, theirs.address, 3)?;
        let (capture, before) = (node.capture_wire()?, node.counters()?);
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            ping6::all(from, to.address, 10)?;
            udp::echo_each(from, to, &[8, 100, 1382], 100)?.ensure_lossless()?;
            udp::send_segmented(from, to, 1200, 40, 5)?.ensure_lossless()?;
            tcp::transfer(from, to, tcp::Spec::bulk(4 << 20))?;
            tcp::transfer(from, to, tcp::Spec::small_writes(50_000, 500))?;
        }
        let counted = node.counters()?.since(&before);
        let (fast, left, decapsulated) = (
            counted.fast(Hook::Egress),
            counted.packets(Hook::Confirm, Outcome::PeerChecksum),
            counted.packets(Hook::Ingress, Outcome::FastTunnel),
        );
        ensure!(
            fast == 0 && left > 500 && decapsulated > 500,
            "{fast} fast, {left} left to the kernel, {decapsulated} decapsulated:\n{counted}"
        );
        let sent = checksums(&capture.stop()?, Direction::Received);
        ensure!(
            sent.len() > 500 && !sent.contains(&0),
            "{} packets",
            sent.len()
        );
        Ok(())
    });
}

/// The record of the stand-in, with the word that it takes checksum 0 or without.
fn say(lab: &Lab, record: &LeaseRecord, zero: bool) -> Result<()> {
    let end = "}}";
    let start = record.value.strip_suffix(end);
    let start = start.with_context(|| record.value.clone())?;
    let word = if zero { r#","ZeroCsum6":true"# } else { "" };
    lab.store()
        .put_lease(&record.subnet_key, &format!("{start}{word}{end}"))
}

/// Packets that the first node sent by the fast path.
fn sent_fast(lab: &Lab) -> Result<u64> {
    Ok(lab.node(0).counters()?.fast(Hook::Egress))
}

/// An error unless the last fast packet left within [`PROMPT`] of `since`.
fn fast_ends(lab: &Lab, since: Instant) -> Result<()> {
    let (mut count, mut changed) = (sent_fast(lab)?, Instant::now());
    while changed.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(5));
        let now = sent_fast(lab)?;
        if now != count {
            (count, changed) = (now, Instant::now());
        }
        ensure!(since.elapsed() < DEADLINE, "fast packets go on");
    }
    let took = changed - since;
    ensure!(took < PROMPT, "the last fast packet left after {took:?}");
    Ok(())
}

fn wait_fast(lab: &Lab) -> Result<()> {
    let before = sent_fast(lab)?;
    wait_for("running flows to become fast", DEADLINE, || {
        let fast = sent_fast(lab)? - before;
        ensure!(fast > 100, "{fast} packets");
        Ok(())
    })
}

/// The device of the stand-in takes both kinds of packets, as that of a node does that went back to
/// flanneld: what its lease says decides, and no packet is lost.
#[test]
fn running_flows_follow_what_the_lease_of_their_peer_says_without_loss() {
    let builder = Lab::builder().nodes(2).config(DUAL).wire(Wire::Segmented);
    scenario(builder, |lab| {
        let (node, peer) = (lab.node(0), lab.node(1));
        lab.start_agent(node, &[])?;
        peer.namespace.ip_batch(&format!(
            "link add flannel-v6.1 address 02:00:00:00:06:02 mtu 1430 type vxlan id 1 \
             dev {NODE_INTERFACE} local {} dstport 8472 nolearning udp6zerocsumrx\n",
            peer.address6()
        ))?;
        lab.start_stock(peer, STOCK)?;
        lab.wait_converged6()?;
        let (ours, theirs) = (node.add_pod6('a')?, peer.add_pod6('a')?);
        let leases = lab.store().leases()?;
        let record = leases.iter().find(|lease| lease.subnet_key == STOCK_KEY);
        let record = record.with_context(|| format!("{leases:?}"))?;

        let flow = SteadyFlow::start(&ours, &theirs, INTERVAL)?;
        let connection = SteadyConnection::open(&theirs, &ours, INTERVAL)?;
        wait_for("the kernel tier to carry the flows", DEADLINE, || {
            let counted = node.counters()?;
            let left = counted.packets(Hook::Confirm, Outcome::PeerChecksum);
            ensure!(left > 200, "{counted}");
            Ok(())
        })?;
        ensure!(sent_fast(lab)? == 0, "fast packets to a stock peer");
        for _ in 0..3 {
            say(lab, record, true)?;
            wait_fast(lab)?;
            let capture = node.capture_wire()?;
            wait_fast(lab)?;
            let sent = checksums(&capture.stop()?, Direction::Received);
            let zero = sent.iter().filter(|checksum| **checksum == 0).count();
            ensure!(zero * 10 >= sent.len() * 9, "{zero} of {}", sent.len());
            say(lab, record, false)?;
            fast_ends(lab, Instant::now())?;
            let capture = node.capture_wire()?;
            wait_for("packets of the kernel tier", DEADLINE, || {
                ensure!(capture.count() > 100, "{} frames", capture.count());
                Ok(())
            })?;
            let sent = checksums(&capture.stop()?, Direction::Received);
            ensure!(!sent.is_empty() && !sent.contains(&0), "{sent:x?}");
        }
        connection.close()?;
        flow.stop()?.datagrams.ensure_lossless()
    });
}

/// How many packets of an exchange leave and reach a node by the fast path.
fn share(lab: &Lab, from: usize, pods: &[Endpoint<Ipv6Addr>; 2]) -> Result<(u64, u64)> {
    let before = lab.node(from).counters()?;
    udp::echo_each(&pods[from], &pods[1 - from], &[100], 200)?.ensure_lossless()?;
    let counted = lab.node(from).counters()?.since(&before);
    Ok((counted.fast(Hook::Egress), counted.fast(Hook::Ingress)))
}

/// The device of flanneld drops packets with checksum 0: the first that is sent too many is lost.
#[test]
fn flows_become_fast_when_the_peers_device_is_made_anew() {
    scenario(Lab::builder().nodes(2).config(DUAL), |lab| {
        let (node, switched) = (lab.node(0), lab.node(1));
        lab.start_agent(node, &[])?;
        lab.start_stock(switched, STOCK)?;
        lab.start_agent(switched, &[])?;
        lab.wait_converged6()?;
        let pods = [node.add_pod6('a')?, switched.add_pod6('a')?];
        ping6::once(&pods[0], pods[1].address)?;
        wait_for("what the switched node sends to be fast", DEADLINE, || {
            let ((sent, _), (_, received)) = (share(lab, 1, &pods)?, share(lab, 0, &pods)?);
            ensure!(
                sent > 150 && received > 150,
                "{sent} sent fast, {received} received"
            );
            Ok(())
        })?;
        let sent = sent_fast(lab)?;
        ensure!(
            sent == 0,
            "{sent} fast packets to a node that keeps flanneld's device"
        );

        switched.cmd("ip", ["link", "delete", "flannel-v6.1"])?;
        wait_for("flows to the switched node to be fast", DEADLINE, || {
            ping6::once(&pods[0], pods[1].address)?;
            match share(lab, 0, &pods)? {
                (150.., 150..) => Ok(()),
                (sent, received) => bail!("{sent} sent fast, {received} received"),
            }
        })
    });
}
