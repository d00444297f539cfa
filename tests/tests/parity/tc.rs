//! Other users of tc: filters of the host, such as those of a bandwidth limit, are run on every packet
//! that the fast path does not take.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::ensure;
use etherparse::{IpNumber, TcpHeader};
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    decode::decode_ipv4,
    differ::{Mode, in_both_modes},
    lab::Lab,
    rules::Protocol,
    services::{Connection, Server},
    wait::wait_for,
};

const PORT: u16 = 8080;
const CONNECTIONS: usize = 20;
/// What the documents promise.
const BOUND: Duration = Duration::from_secs(1);

/// SYN and SYN-ACK packets among the frames an interface sent.
fn handshakes(frames: &[Frame]) -> usize {
    let is_handshake = |frame: &&Frame| {
        frame.direction == Direction::Sent
            && decode_ipv4(&frame.bytes).is_ok_and(|packet| {
                packet.ip.protocol == IpNumber::TCP
                    && TcpHeader::from_slice(&packet.payload).is_ok_and(|(tcp, _)| tcp.syn)
            })
    };
    frames.iter().filter(is_handshake).count()
}

#[test]
fn tc_filters_of_the_host_see_every_packet_that_is_not_fast() {
    in_both_modes(&Lab::builder().nodes(2), &[], |lab, mode| {
        lab.add_pods(1)?;
        lab.ping_matrix()?;
        let node = lab.node(0);
        let [from, to] = [0, 1].map(|node| lab.node(node).pods()[0].clone());
        node.namespace.ip_batch(
            "link add tap mtu 9000 type veth peer name tapped\n\
             link set tap up\n\
             link set tapped up\n",
        )?;
        // Wherever there is a program of ours, behind it.
        for interface in [&from.host_interface, "flannel.1"] {
            node.cmd("tc", ["qdisc", "add", "dev", interface, "clsact"])?;
            for side in ["ingress", "egress"] {
                let filter = format!(
                    "filter add dev {interface} {side} protocol ip u32 match u32 0 0 \
                     action mirred egress mirror dev tap"
                );
                node.cmd("tc", filter.split_whitespace())?;
            }
        }
        wait_for("the agent to see them", BOUND, || {
            let status = node.operator(&["status"])?;
            let is_seen = status.contains("a tc filter of others at the tunnel device");
            ensure!(is_seen || mode == Mode::Off, "{status}");
            Ok(())
        })?;
        let capture = Capture::start(&node.namespace, "tap")?;
        let server = Server::start(&to.endpoint(), Protocol::Tcp, PORT)?;
        let target = SocketAddrV4::new(to.address, PORT);
        for _ in 0..CONNECTIONS {
            let mut connection = Connection::open(&from.endpoint(), Protocol::Tcp, target, 0)?;
            connection.exchange(5_000, 500)?;
            connection.close()?;
        }
        drop(server);
        let seen = handshakes(&capture.stop()?);
        let expected = 4 * CONNECTIONS;
        ensure!(
            seen == expected,
            "filters saw {seen} of {expected} handshake packets"
        );
        Ok(())
    });
}
