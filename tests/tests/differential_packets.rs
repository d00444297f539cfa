//! The same random packets through two labs, with the fast path and without: pods receive the same,
//! bit by bit.
//!
//! What is left out of the comparison is in two tables below, each with its reason. One thing more
//! is not in the sequence: frames to a MAC address that only fast packets came from. A bridge floods
//! them, because it never learned where that address is.
//!
//! `OVERLAY_DIFFERENTIAL_PACKETS` sets how many packets, `OVERLAY_DIFFERENTIAL_SEED` which.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use overlay_common::{addr::MacAddr, outcome::Hook};
use overlay_tests::{
    capture::{Capture, Direction},
    differ::{
        Mode, in_both_modes,
        packets::{ICMP, has_valid_header_check, header_len},
        raw::{POD_INTERFACE, RawPort, deafen, mac_of},
        sequence::{BACKEND, Mac, PODS, SERVICE, Step, generate},
    },
    lab::{Builder, Lab, Pod},
};

/// Packets of each of the runs.
const PACKETS: u64 = 120_000;
const SEED: u64 = 0x5eed;
/// Packets under way at a time: less than any queue on their way holds.
const BATCH: usize = 100;
/// When nothing arrives for so long, nothing is under way.
const SETTLED: Duration = Duration::from_millis(3);
const ETH_LEN: usize = 14;

/// Why something that arrives is not compared, and how it is recognised. The packet is whole, from
/// the IP header on.
type Exception = (&'static str, fn(&[u8]) -> bool);

const NOT_COMPARED: [Exception; 3] = [
    (
        "A wrong header checksum is noticed by the first IP layer: the node's, or for a fast packet \
         the pod's. No socket but a packet socket sees the difference.",
        |packet| !has_valid_header_check(packet),
    ),
    (
        "\"Fragment reassembly time exceeded\" comes when a timer of the node ends.",
        |packet| icmp_kind(packet) == Some([11, 1]),
    ),
    (
        "IGMP reports of the node's bridge come by timers, too.",
        |packet| packet.get(9) == Some(&2),
    ),
];

/// Why a field is not compared, and how it is erased.
type Erasure = (&'static str, fn(&mut Vec<u8>));

const ERASED: [Erasure; 1] = [(
    "The identification, and with it the checksum, of an ICMP error is the node's choice.",
    |packet| {
        if matches!(icmp_kind(packet), Some([3 | 5 | 11 | 12, _]))
            && !PODS.contains(&source(packet))
        {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
    },
)];

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

#[test]
fn pods_receive_the_same_packets_through_the_tunnel_with_the_fast_path_as_without() {
    run(&Lab::builder().nodes(2), SEED);
}

#[test]
fn pods_receive_the_same_packets_by_direct_routes_with_the_fast_path_as_without() {
    run(&Lab::builder().nodes(2).config(DIRECT), SEED + 1);
}

fn run(builder: &Builder, seed: u64) {
    let number = |variable, default| match env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{variable}: {error}")),
        Err(_) => default,
    };
    let seed = number("OVERLAY_DIFFERENTIAL_SEED", seed);
    let count = number("OVERLAY_DIFFERENTIAL_PACKETS", PACKETS);
    let steps = generate(seed, usize::try_from(count).unwrap());
    let [fast, off] = in_both_modes(builder, &[], |lab, mode| replay(lab, mode, &steps));
    let mut report = String::new();
    for ((pod, fast), off) in PODS.iter().zip(&fast).zip(&off) {
        compare(&mut report, *pod, fast, off);
    }
    assert!(report.is_empty(), "seed {seed}, {count} packets:\n{report}");
    let received: usize = off.iter().map(Vec::len).sum();
    assert!(
        received > steps.len() / 2,
        "{received} of {} packets arrived",
        steps.len()
    );
}

/// Sends the steps; what each pod received, in an order of its own.
fn replay(lab: &Lab, mode: Mode, steps: &[Step]) -> Result<Vec<Vec<Vec<u8>>>> {
    for node in lab.nodes() {
        // Errors are compared, too: none may be held back.
        for (key, value) in [
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv4/icmp_msgs_per_sec", "1000000"),
            ("net/ipv4/icmp_msgs_burst", "1000000"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            // Nor may fragments of which one is missing get in the way of others, or time out.
            ("net/ipv4/ipfrag_high_thresh", "268435456"),
            ("net/ipv4/ipfrag_time", "600"),
        ] {
            node.namespace.set_sysctl(key, value)?;
        }
    }
    lab.add_pods(2)?;
    lab.ping_matrix()?;
    let pods: Vec<Pod> = lab.pods().into_iter().map(|(_, pod)| pod).collect();
    let addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
    ensure!(addresses == PODS, "the pods have {addresses:?}");
    translate(lab)?;
    let ports = pods.iter().map(RawPort::open).collect::<Result<Vec<_>>>()?;
    let gateways = lab
        .nodes()
        .iter()
        .map(|node| mac_of(&node.namespace, "cni0"))
        .collect::<Result<Vec<_>>>()?;
    pods.iter().try_for_each(deafen)?;
    let captures = pods
        .iter()
        .map(|pod| Capture::start(&pod.namespace, POD_INTERFACE))
        .collect::<Result<Vec<_>>>()?;
    let mac = |sender: usize, mac| match mac {
        Mac::Pod(index) => ports[index].mac,
        Mac::Gateway => gateways[sender / 2],
        Mac::Broadcast => MacAddr::new([0xff; 6]),
        // That of 224.0.0.251 (RFC 1112 §6.4).
        Mac::Multicast => MacAddr::new([1, 0, 0x5e, 0, 0, 0xfb]),
        Mac::Nobody => MacAddr::new([2, 0, 0, 0, 0, 9]),
        Mac::Stranger => MacAddr::new([2, 0, 0, 0, 0, 8]),
    };
    for batch in steps.chunks(BATCH) {
        for step in batch {
            let mut frame = Vec::with_capacity(ETH_LEN + 4 + step.packet.len());
            frame.extend(mac(step.sender, step.dst).octets);
            frame.extend(mac(step.sender, step.src).octets);
            if let Some(vlan) = step.vlan {
                frame.extend([0x81, 0]);
                frame.extend(vlan.to_be_bytes());
            }
            frame.extend([8, 0]);
            frame.extend(&step.packet);
            ports[step.sender].send(&frame)?;
        }
        settle(&captures);
    }
    check_counters(lab, mode, steps.len())?;
    let mut names = BTreeMap::new();
    names.extend(
        ports
            .iter()
            .zip(1..)
            .map(|(port, name)| (port.mac.octets, name)),
    );
    names.extend(
        gateways
            .iter()
            .zip(11..)
            .map(|(mac, name)| (mac.octets, name)),
    );
    let mut received = Vec::new();
    for capture in captures {
        let frames = capture.stop()?;
        let mut packets: Vec<_> = frames
            .iter()
            .filter(|frame| frame.direction == Direction::Received)
            .filter_map(|frame| normalise(&frame.bytes, &names))
            .collect();
        packets.sort();
        received.push(packets);
    }
    Ok(received)
}

/// The service, translated at every node.
fn translate(lab: &Lab) -> Result<()> {
    let (address, port) = SERVICE;
    let (backend, backend_port) = BACKEND;
    let backend = PODS[backend];
    for node in lab.nodes() {
        let rules = format!(
            "table ip services {{ chain translate {{ type nat hook prerouting priority dstnat; \
             ip daddr {address} th dport {port} dnat to {backend}:{backend_port}; }}; }}"
        );
        // Protocols without ports must not reach the rule.
        let rules = rules.replace("th dport", "meta l4proto { tcp, udp } th dport");
        node.cmd("nft", [rules.as_str()])?;
    }
    Ok(())
}

/// Waits until no more frames arrive.
fn settle(captures: &[Capture]) {
    let count = || captures.iter().map(Capture::count).sum::<usize>();
    let (mut last, mut since) = (count(), Instant::now());
    while since.elapsed() < SETTLED {
        thread::sleep(Duration::from_micros(300));
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// The comparison is one of two different things.
fn check_counters(lab: &Lab, mode: Mode, steps: usize) -> Result<()> {
    let mut fast = BTreeMap::new();
    for hook in [Hook::Egress, Hook::Ingress] {
        let mut sum = 0;
        for node in lab.nodes() {
            sum += node.counters()?.fast(hook);
        }
        fast.insert(hook, sum);
    }
    let expected = match mode {
        Mode::Fast => steps as u64 / 4..=steps as u64,
        Mode::Off => 0..=0,
    };
    if fast.values().all(|count| expected.contains(count)) {
        return Ok(());
    }
    bail!("fast packets of {steps}: {fast:?}, not {expected:?}")
}

/// What is compared of a frame: the names of its MAC addresses, and the packet.
fn normalise(frame: &[u8], names: &BTreeMap<[u8; 6], u8>) -> Option<Vec<u8>> {
    let (header, packet) = frame.split_first_chunk::<ETH_LEN>()?;
    if header[12..] != [8, 0] || NOT_COMPARED.iter().any(|(_, applies)| applies(packet)) {
        return None;
    }
    let mut packet = packet.to_vec();
    for (_, erase) in ERASED {
        erase(&mut packet);
    }
    let mut comparable = Vec::new();
    for mac in header[..12].chunks(6) {
        match <[u8; 6]>::try_from(mac)
            .ok()
            .and_then(|mac| names.get(&mac))
        {
            Some(&name) => comparable.push(name),
            None => comparable.extend(mac),
        }
    }
    comparable.extend(packet);
    Some(comparable)
}

fn icmp_kind(packet: &[u8]) -> Option<[u8; 2]> {
    let message = packet.get(header_len(packet)..)?;
    (packet.get(9) == Some(&ICMP)).then_some(*message.first_chunk()?)
}

fn source(packet: &[u8]) -> Ipv4Addr {
    let octets = packet.get(12..16).and_then(|octets| octets.try_into().ok());
    octets.map_or(Ipv4Addr::UNSPECIFIED, |octets: [u8; 4]| octets.into())
}

/// Names what one lab's pod received more often than the other's.
fn compare(report: &mut String, pod: Ipv4Addr, fast: &[Vec<u8>], off: &[Vec<u8>]) {
    let mut balance: BTreeMap<&[u8], i32> = BTreeMap::new();
    for packet in fast {
        *balance.entry(packet).or_default() += 1;
    }
    for packet in off {
        *balance.entry(packet).or_default() -= 1;
    }
    let different: Vec<_> = balance
        .iter()
        .filter(|(_, balance)| **balance != 0)
        .collect();
    if different.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(report, "pod {pod}: {} different packets", different.len());
    for (packet, balance) in different.iter().take(12) {
        let mut start = String::new();
        for byte in packet.iter().take(64) {
            let _ = write!(start, "{byte:02x}");
        }
        let _ = writeln!(
            report,
            "  {balance:+} with the fast path, {} bytes: {start}",
            packet.len()
        );
    }
}
