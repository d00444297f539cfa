//! The XDP guard and IPv6 tunnel packets: those of strangers are dropped and counted, peers talk on.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    differ::{
        packets::{self, Header as _, UDP},
        packets6::{DESTINATION_OPTIONS, Extension, Ip6},
        raw::RawPort,
    },
    lab::{Lab, scenario, underlay::NODE_INTERFACE},
    traffic::{connection::SteadyConnection, flow::SteadyFlow, udp},
    wait::wait_for,
};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const DEADLINE: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_millis(2);
const VXLAN_PORT: u16 = 8472;
/// Packets of each kind.
const COUNT: u64 = 1_000;
/// With what else is under way, less than the ring of a veth that runs XDP.
const WINDOW: u64 = 20;

/// Frames of one attacker to one node.
struct Forge {
    port: RawPort,
    victim: [u8; 6],
    vtep: Ipv6Addr,
}

impl Forge {
    fn frame(
        &self,
        source: Ipv6Addr,
        extensions: Vec<Extension>,
        port: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let ip = Ip6 {
            source,
            destination: self.vtep,
            protocol: UDP,
            hop_limit: 64,
            class: 0,
            label: 0,
            extensions,
        };
        let packet = ip.packet(&packets::udp(&ip, [40_000, port], payload));
        let mac = self.port.mac.octets;
        [&self.victim[..], &mac, &[0x86, 0xdd], &packet].concat()
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

fn guarded(argument: &str) {
    scenario(Lab::builder().nodes(3).config(DUAL), |lab| {
        let (victim, peer, attacker) = (lab.node(0), lab.node(1), lab.node(2));
        for node in [victim, peer] {
            lab.start_agent(node, &[argument])?;
        }
        for node in [victim, peer] {
            node.wait_ready6()?;
        }
        lab.wait_converged6()?;
        let (near, far) = (victim.add_pod6('a')?, peer.add_pod6('a')?);
        wait_for("the guard", DEADLINE, || {
            let guard = victim.attached(NODE_INTERFACE)?.get("guard").copied();
            guard.context("not attached")
        })?;
        let datagrams = SteadyFlow::start(&far, &near, INTERVAL)?;
        let stream = SteadyConnection::open(&far, &near, INTERVAL)?;
        let socket = udp::bind(&victim.endpoint6())?;
        let other_port = socket.local_addr()?.port();
        socket.set_read_timeout(Some(DEADLINE))?;

        let forge = Forge {
            port: RawPort::at(&attacker.namespace, NODE_INTERFACE)?,
            victim: victim.mac(NODE_INTERFACE)?.octets,
            vtep: victim.address6(),
        };
        let (stranger, peer) = (attacker.address6(), peer.address6());
        let tunnel =
            |source, flags, vni| forge.frame(source, Vec::new(), VXLAN_PORT, &vxlan(flags, vni));
        let options = vec![Extension::options(DESTINATION_OPTIONS, &[])];
        let kinds = [
            (Outcome::GuardPeer, tunnel(stranger, 8, 1)),
            (Outcome::GuardHeader, tunnel(peer, 0, 1)),
            (
                Outcome::GuardTruncated,
                forge.frame(peer, Vec::new(), VXLAN_PORT, &vxlan(8, 1)[..15]),
            ),
            // Of another network.
            (Outcome::VxlanHeader, tunnel(stranger, 8, 77)),
            // Left to the kernel.
            (
                Outcome::NotOverlay,
                forge.frame(stranger, options, other_port, b"behind options"),
            ),
        ];
        for (outcome, frame) in kinds {
            let before = victim.counters()?.packets(Hook::Guard, outcome);
            let counted =
                || -> Result<u64> { Ok(victim.counters()?.packets(Hook::Guard, outcome) - before) };
            let mut sent = 0;
            while sent < COUNT {
                for _ in 0..WINDOW {
                    forge.port.send(&frame)?;
                }
                sent += WINDOW;
                wait_for("bad packets to be counted", DEADLINE, || {
                    let counted = counted()?;
                    ensure!(counted >= sent, "{}: {counted} of {sent}", outcome.name());
                    Ok(())
                })?;
            }
            let counted = counted()?;
            // What else the node hears is no tunnel packet, either.
            ensure!(
                counted == sent || outcome == Outcome::NotOverlay,
                "{}: {counted} counted of {sent}",
                outcome.name()
            );
        }
        let mut buffer = [0; 64];
        for number in 0..COUNT {
            let len = socket.recv(&mut buffer);
            let len = len.with_context(|| format!("only {number} datagrams behind options"))?;
            ensure!(&buffer[..len] == b"behind options", "damaged");
        }
        let unknown = victim.counters()?;
        let unknown = unknown.packets(Hook::Ingress, Outcome::UnknownPeer);
        ensure!(unknown == 0, "{unknown} bad packets passed the guard");
        stream.close()?;
        datagrams.stop()?.datagrams.ensure_lossless()
    });
}

#[test]
fn ipv6_tunnel_packets_of_strangers_are_dropped_and_counted_by_the_generic_guard() {
    guarded("--xdp=generic");
}

#[test]
fn ipv6_tunnel_packets_of_strangers_are_dropped_and_counted_by_the_native_guard() {
    guarded("--xdp=native");
}
