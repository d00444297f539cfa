//! TCP packets beyond 64 KiB inside the kernel: the fast path declines what its headers cannot
//! announce, and every byte arrives.

use anyhow::{Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    big_tcp,
    capture::{Capture, Direction},
    differ::{Mode, in_both_modes, raw::POD_INTERFACE},
    lab::{Lab, underlay::NODE_INTERFACE},
    traffic::tcp,
};

const SIZE: u32 = 150_000;
/// The largest packet an IPv4 header can announce, in a frame.
const LARGEST: usize = 65_535 + 14;
const BYTES: u64 = 24 << 20;

/// Sends both ways between two pods whose packets may be big.
fn transfer(lab: &Lab, mode: Mode) -> Result<()> {
    lab.add_pods(1)?;
    lab.ping_matrix()?;
    for node in lab.nodes() {
        let pod = &node.pods()[0];
        big_tcp::allow(&pod.namespace, POD_INTERFACE, SIZE)?;
        for interface in [&pod.host_interface, "cni0", NODE_INTERFACE] {
            big_tcp::allow(&node.namespace, interface, SIZE)?;
        }
    }
    let [from, to] = [0, 1].map(|node| lab.node(node).pods()[0].clone());
    let capture = Capture::start(&lab.node(0).namespace, &from.host_interface)?;
    tcp::transfer(&from.endpoint(), &to.endpoint(), tcp::Spec::bulk(BYTES))?;
    let sent = capture.stop()?;
    let big = sent
        .iter()
        .filter(|frame| frame.direction == Direction::Received && frame.bytes.len() > LARGEST);
    let big = big.count() as u64;
    ensure!(big > 10, "{big} packets were big");
    let counters = lab.node(0).counters()?;
    if mode == Mode::Fast {
        let left = [Outcome::Length, Outcome::Mtu, Outcome::NoPermit];
        let declined = left.map(|outcome| counters.packets(Hook::Egress, outcome));
        let declined: u64 = declined.iter().sum();
        ensure!(declined >= big, "{big} were big:\n{counters}");
        // Acknowledgements are as small as ever.
        let fast = lab.node(1).counters()?.fast(Hook::Egress);
        ensure!(fast > 10, "{fast} packets were fast");
    }
    let dropped = counters.dropped() + lab.node(1).counters()?.dropped();
    ensure!(dropped == 0, "{dropped} packets were dropped:\n{counters}");
    Ok(())
}

#[test]
fn big_tcp_packets_reach_pods_whole_through_the_tunnel() {
    in_both_modes(&Lab::builder().nodes(2), &[], transfer);
}

#[test]
fn big_tcp_packets_reach_pods_whole_by_direct_routing() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    in_both_modes(&Lab::builder().nodes(2).config(config), &[], transfer);
}
