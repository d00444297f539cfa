//! Pods that make tunnel packets of their own.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Result, ensure};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    differ::{
        Mode, in_mode,
        packets::{self, Header as _, Ip, UDP},
        raw::POD_INTERFACE,
    },
    lab::{Lab, Pod},
    traffic::{Endpoint, ping},
};

use super::common::pod;

/// A tunnel packet to pod `to`, from an address of the first node's subnet that no pod has.
fn tunnel_packet(lab: &Lab, to: &Pod) -> Result<Vec<u8>> {
    let ip = Ip {
        source: Ipv4Addr::new(10, 5, 1, 99),
        destination: to.address,
        protocol: UDP,
        ttl: 64,
        tos: 0,
        id: 1,
        fragment: 0,
        options: Vec::new(),
    };
    let inner = ip.packet(&packets::udp(&ip, [1, 2], b"injected"));
    let vteps = [1, 0].map(|node| lab.node(node).mac("flannel.1"));
    let [dst, src] = vteps;
    Ok([
        &[8, 0, 0, 0, 0, 0, 1, 0][..],
        &dst?.octets,
        &src?.octets,
        &[8, 0],
        &inner,
    ]
    .concat())
}

#[test]
fn a_pod_cannot_put_packets_into_the_tunnel() {
    in_mode(
        &Lab::builder().nodes(2),
        &["--ip-masq"],
        Mode::Fast,
        |lab, _| {
            lab.add_pods(1)?;
            lab.ping_matrix()?;
            let (attacker, victim) = (pod(lab, 0, "a")?, pod(lab, 1, "a")?);
            let payload = tunnel_packet(lab, &victim)?;
            let send = |from: &Endpoint, to: Ipv4Addr, count: usize| {
                from.namespace.enter(|| -> Result<()> {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    for _ in 0..count {
                        socket.send_to(&payload, (to, 8472))?;
                    }
                    Ok(())
                })
            };
            let count = |frames: &[Frame]| {
                let injected = |frame: &&Frame| {
                    frame.direction == Direction::Received && frame.bytes.ends_with(b"injected")
                };
                frames.iter().filter(injected).count()
            };
            let capture = Capture::start(&victim.namespace, POD_INTERFACE)?;
            let vtep = lab.node(1).address;
            send(&attacker.endpoint(), vtep, 20)?;
            send(&attacker.endpoint(), lab.node(0).address, 20)?;
            // What arrives after them shows that they would have arrived.
            ping::all(&attacker.endpoint(), victim.address, 3)?;
            let arrived = count(&capture.stop()?);
            ensure!(arrived == 0, "{arrived} injected packets arrived");
            let dropped = lab
                .node(0)
                .counters()?
                .packets(Hook::Egress, Outcome::PodTunnel);
            ensure!(dropped == 40, "{dropped} packets counted");

            // The vxlan socket takes packets at any address of a node.
            let capture = Capture::start(&victim.namespace, POD_INTERFACE)?;
            let [here, there] = [0, 1].map(|node| lab.node(node).subnet_env());
            let (here, there) = (here?, there?);
            for address in [there.subnet()?.network(), there.gateway.ip()] {
                send(&attacker.endpoint(), address, 20)?;
            }
            for address in [here.gateway.ip(), Ipv4Addr::new(224, 0, 0, 1)] {
                send(&attacker.endpoint(), address, 20)?;
            }
            ping::all(&attacker.endpoint(), victim.address, 3)?;
            let arrived = count(&capture.stop()?);
            ensure!(arrived == 0, "{arrived} packets arrived by other addresses");
            for (node, hook, want) in [(0, Hook::Egress, 80), (1, Hook::Arrive, 40)] {
                let counters = lab.node(node).counters()?;
                let dropped = counters.packets(hook, Outcome::PodTunnel);
                ensure!(dropped == want, "{dropped} packets of {want}:\n{counters}");
            }

            // The packet is one that the peer believes, if it comes from the node.
            let capture = Capture::start(&victim.namespace, POD_INTERFACE)?;
            send(&lab.node(0).endpoint(), vtep, 5)?;
            ping::all(&attacker.endpoint(), victim.address, 3)?;
            let arrived = count(&capture.stop()?);
            ensure!(arrived == 5, "{arrived} of 5 packets arrived");
            Ok(())
        },
    );
}
