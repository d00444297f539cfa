//! Sends a sequence of packets through two labs, with the fast path and without: pods receive the
//! same, bit by bit.
//!
//! What is left out of the comparison is in the tables of each family, with the reasons. One thing more
//! is not in the sequence: frames to a MAC address that only fast packets came from. A bridge floods
//! them, because it never learned where that address is.
//!
//! `OVERLAY_DIFFERENTIAL_PACKETS` sets how many packets, `OVERLAY_DIFFERENTIAL_SEED` which.

use std::{
    collections::BTreeMap,
    env,
    fmt::{Display, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use overlay_common::{
    addr::MacAddr,
    outcome::{Hook, Outcome},
};

use super::{
    Mode,
    family::SequenceFamily,
    in_both_modes,
    raw::{POD_INTERFACE, RawPort, deafen, mac_of},
    sequence::{ETH_LEN, Mac, Step, generate},
};
use crate::{
    capture::{Capture, Direction, Frame},
    lab::{Builder, Lab},
};

/// Packets under way at a time: less than any queue on their way holds.
const BATCH: usize = 100;
/// When nothing arrives for so long, nothing is under way.
const SETTLED: Duration = Duration::from_millis(3);

/// Panics with the differences, if there are any. Sends `packets`, those that `seed` stands for,
/// unless the environment says otherwise.
pub fn ensure_same<F: SequenceFamily>(builder: &Builder, seed: u64, packets: u64) {
    let number = |variable, default| match env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{variable}: {error}")),
        Err(_) => default,
    };
    let seed = number("OVERLAY_DIFFERENTIAL_SEED", seed);
    let count = number("OVERLAY_DIFFERENTIAL_PACKETS", packets);
    let steps = generate::<F>(seed, usize::try_from(count).expect("a 64-bit machine"));
    let [fast, off] = in_both_modes(builder, &[], |lab, mode| replay::<F>(lab, mode, &steps));
    let mut report = String::new();
    for ((pod, fast), off) in F::PODS.iter().zip(&fast).zip(&off) {
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
fn replay<F: SequenceFamily>(lab: &Lab, mode: Mode, steps: &[Step]) -> Result<Vec<Vec<Vec<u8>>>> {
    for node in lab.nodes() {
        for (key, value) in F::SYSCTLS {
            node.namespace.set_sysctl(key, value)?;
        }
    }
    let pods = F::add_pods(lab)?;
    let rules = F::service_rules();
    for node in lab.nodes() {
        node.cmd("nft", [rules.as_str()])?;
    }
    let ports = pods
        .iter()
        .map(|pod| RawPort::at(pod, POD_INTERFACE))
        .collect::<Result<Vec<_>>>()?;
    let gateways = lab
        .nodes()
        .iter()
        .map(|node| mac_of(&node.namespace, "cni0"))
        .collect::<Result<Vec<_>>>()?;
    pods.iter().try_for_each(deafen::<F>)?;
    let captures = pods
        .iter()
        .map(|pod| Capture::with_offloads(pod, POD_INTERFACE))
        .collect::<Result<Vec<_>>>()?;
    let mac = |sender: usize, mac| match mac {
        Mac::Pod(index) => ports[index].mac,
        Mac::Gateway => gateways[sender / 2],
        Mac::Broadcast => MacAddr::new([0xff; 6]),
        Mac::Multicast => MacAddr::new(F::GROUP),
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
            frame.extend(F::ETHERTYPE);
            frame.extend(&step.packet);
            ports[step.sender].send_with(step.offload, &frame)?;
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
            .filter_map(|frame| normalise::<F>(frame, &names))
            .collect();
        packets.sort();
        received.push(packets);
    }
    Ok(received)
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
        Mode::Fast | Mode::Trusted => steps as u64 / 4..=steps as u64,
        Mode::Off => 0..=0,
    };
    if !fast.values().all(|count| expected.contains(count)) {
        bail!("fast packets of {steps}: {fast:?}, not {expected:?}");
    }
    for hook in [Hook::Confirm, Hook::Ingress] {
        let (mut short, mut tunnelled) = (0, 0);
        for node in lab.nodes() {
            let counters = node.counters()?;
            short += counters.packets(hook, Outcome::ShortWay);
            tunnelled += counters.packets(Hook::Egress, Outcome::FastTunnel);
        }
        if (short > steps as u64 / 200) != (tunnelled > 0) {
            bail!("{short} of {steps} packets went the short way at {hook:?}");
        }
    }
    // Both clients of the service are on the first node.
    let counters = lab.node(0).counters()?;
    for hook in [Hook::Egress, Hook::Ingress] {
        let translated = counters.packets(hook, Outcome::FastTranslated);
        if (translated > steps as u64 / 200) != (mode == Mode::Fast) {
            bail!("{translated} of {steps} packets were translated by {hook:?}");
        }
    }
    Ok(())
}

/// What is compared of a frame: the names of its MAC addresses, what is left to the card, and the packet.
fn normalise<F: SequenceFamily>(frame: &Frame, names: &BTreeMap<[u8; 6], u8>) -> Option<Vec<u8>> {
    let mut bytes = frame.bytes.clone();
    let offload = frame.offload.without_checksum(&mut bytes);
    let (header, packet) = bytes.split_first_chunk::<ETH_LEN>()?;
    if header[12..] != F::ETHERTYPE || !F::is_compared(packet) {
        return None;
    }
    let mut packet = packet.to_vec();
    F::erase(&mut packet);
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
    comparable.extend(offload.comparable());
    comparable.extend(packet);
    Some(comparable)
}

/// Names what one lab's pod received more often than the other's.
fn compare(report: &mut String, pod: impl Display, fast: &[Vec<u8>], off: &[Vec<u8>]) {
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
    let (more, less): (Vec<_>, Vec<_>) = different.iter().partition(|(_, balance)| **balance > 0);
    for (packet, balance) in more.iter().take(6).chain(less.iter().take(6)) {
        let mut start = String::new();
        for byte in packet.iter().take(60) {
            let _ = write!(start, "{byte:02x}");
        }
        let _ = writeln!(
            report,
            "  {balance:+} with the fast path, {} bytes: {start}",
            packet.len()
        );
    }
}
