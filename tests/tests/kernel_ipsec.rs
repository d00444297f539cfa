//! Tunnel packets that IPsec ciphers, where the kernel has ESP: skipped on one that lacks it.
//! `cargo xtask test --kernel VERSION` runs this on kernels that have it.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    capture::Frame,
    decode::{decode_ipv4, is_udp_to},
    lab::{Lab, scenario},
    netns::Namespace,
    requirements::require_root,
    rules::Protocol,
    services::{Connection, Server},
    skip,
    wait::{scaled, wait_for},
};

const VXLAN_PORT: u16 = 8472;
const PORT: u16 = 8080;
const ESP: u8 = 50;
const DEADLINE: Duration = Duration::from_secs(15);
/// What an announced change may take to end fast flows.
const BOUND: Duration = Duration::from_secs(1);
const CIPHER: &str = "enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f \
     auth hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Why the kernel cannot cipher; `None` if it can.
fn lacks_esp() -> Option<String> {
    require_root();
    let name = format!("ovl-lacks-{}", std::process::id());
    let namespace = Namespace::create(&name).expect("a network namespace");
    let state = format!(
        "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode transport {CIPHER}"
    );
    let made = namespace.run("ip", state.split_whitespace());
    Namespace::delete(&name).expect("the namespace goes");
    made.err().map(|error| format!("{error:#}"))
}

/// Has the two nodes cipher all that goes between them.
fn cipher(lab: &Lab) -> Result<()> {
    let [first, second] = [0, 1].map(|index| lab.node(index).address.to_string());
    let ways = [(&first, &second, 1), (&second, &first, 2)];
    for node in lab.nodes() {
        let run = |words: String| node.cmd("ip", words.split_whitespace()).map(drop);
        for (from, to, spi) in ways {
            run(format!(
                "xfrm state add src {from} dst {to} proto esp spi {spi} mode transport {CIPHER}"
            ))?;
        }
    }
    for node in lab.nodes() {
        let own = node.address.to_string();
        for (from, to, _) in ways {
            let dir = if *from == own { "out" } else { "in" };
            let words = format!(
                "xfrm policy add src {from} dst {to} dir {dir} \
                 tmpl src {from} dst {to} proto esp mode transport level required"
            );
            node.cmd("ip", words.split_whitespace())?;
        }
    }
    Ok(())
}

fn is_esp(frame: &Frame) -> bool {
    decode_ipv4(&frame.bytes).is_ok_and(|packet| packet.ip.protocol.0 == ESP)
}

#[test]
fn a_flow_goes_on_ciphered_and_nothing_of_it_leaves_in_clear() {
    if let Some(reason) = lacks_esp() {
        skip!("no ESP: {reason}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        lab.wait_attached()?;
        let pods = lab.pods();
        let [client, server] = [0, 1].map(|index| pods[index].1.endpoint());
        let listening = Server::start(&server, Protocol::Udp, PORT)?;
        let mut connection = Connection::open(&client, Protocol::Udp, listening.address, 0)?;
        let node = lab.node(0);
        wait_for("the flow to be fast", DEADLINE, || {
            let before = node.counters()?;
            connection.exchange(2_000, 100)?;
            let fast = node.counters()?.since(&before).fast(Hook::Egress);
            ensure!(fast >= 15, "{fast} fast packets of 20");
            Ok(())
        })?;
        cipher(lab)?;
        thread::sleep(scaled(BOUND));
        let capture = node.capture_wire()?;
        let before = node.counters()?;
        wait_for("the flow to go on", DEADLINE, || {
            connection.exchange(2_000, 100)
        })?;
        let frames = capture.stop()?;
        let clear = frames
            .iter()
            .filter(|frame| is_udp_to(&frame.bytes, VXLAN_PORT))
            .count();
        let ciphered = frames.iter().filter(|frame| is_esp(frame)).count();
        let counted = node.counters()?.since(&before);
        ensure!(clear == 0, "{clear} tunnel packets in clear\n{counted}");
        ensure!(ciphered >= 40, "{ciphered} ciphered packets\n{counted}");
        ensure!(
            counted.fast(Hook::Egress) == 0,
            "fast packets where IPsec has to cipher\n{counted}"
        );
        Ok(())
    });
}
