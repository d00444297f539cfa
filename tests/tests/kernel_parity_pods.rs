//! Pods that come, go, swap addresses or lie about them: nobody gets what is not his.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::{
    addr::MacAddr,
    outcome::{Hook, Outcome},
};
use overlay_tests::{
    capture::{Capture, Direction, Frame},
    decode::decode_ipv4,
    differ::{
        Mode, in_both_modes, in_mode,
        packets::{self, Header as _, Ip, UDP},
        raw::{POD_INTERFACE, RawPort, mac_of},
    },
    lab::{Attachment, Lab, Pod},
    rules::Protocol,
    services::{Connection, Server},
    traffic::{Endpoint, ping},
    wait::wait_for,
};

const PORT: u16 = 8080;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const DEADLINE: Duration = Duration::from_secs(15);

fn pod(lab: &Lab, node: usize, name: &str) -> Result<Pod> {
    let pods = lab.node(node).pods();
    let pod = pods.into_iter().find(|pod| pod.name == name);
    pod.with_context(|| format!("no pod {name}"))
}

fn serve(on: &Endpoint) -> Result<Vec<Server>> {
    PROTOCOLS
        .iter()
        .map(|&protocol| Server::start(on, protocol, PORT))
        .collect()
}

fn connect(from: &Endpoint, to: Ipv4Addr) -> Result<[Connection; 2]> {
    let target = SocketAddrV4::new(to, PORT);
    Ok([
        Connection::open(from, Protocol::Tcp, target, 0)?,
        Connection::open(from, Protocol::Udp, target, 0)?,
    ])
}

/// Uses the connection until the node of its server delivers it by the fast path, if there is one.
fn warm(lab: &Lab, mode: Mode, server: usize, connection: &mut Connection) -> Result<()> {
    wait_for("the fast path to carry a connection", DEADLINE, || {
        let before = lab.node(server).counters()?.fast(Hook::Ingress);
        connection.exchange(1_000, 100)?;
        let fast = lab.node(server).counters()?.fast(Hook::Ingress) - before;
        ensure!(
            mode == Mode::Off || fast >= 8,
            "{fast} of 10 packets were fast"
        );
        Ok(())
    })
}

/// Announces that `address` is at `pod`, a pod of the first node, until the node has heard: a
/// bridge drops what comes before it has noticed that the port is up.
fn announce(lab: &Lab, pod: &Pod, address: Ipv4Addr) -> Result<()> {
    let port = RawPort::open(pod)?;
    wait_for("the node to learn where an address is", DEADLINE, || {
        port.announce(address)?;
        let known = lab
            .node(0)
            .cmd("ip", ["neigh", "show", &address.to_string()])?;
        ensure!(known.contains(&port.mac.to_string()), "it has {known}");
        Ok(())
    })
}

/// Frames an interface received whose Ethernet and IP destinations are these.
fn addressed(frames: &[Frame], mac: MacAddr, address: Ipv4Addr) -> usize {
    let received = frames.iter().filter(|frame| {
        frame.direction == Direction::Received
            && decode_ipv4(&frame.bytes).is_ok_and(|packet| {
                packet.eth.destination == mac.octets && packet.ip.destination == address.octets()
            })
    });
    received.count()
}

#[test]
fn a_new_pod_with_the_address_of_a_dead_one_is_served_at_once() {
    in_both_modes(&Lab::builder().nodes(2), &[], |lab, mode| {
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let client = pod(lab, 1, "a")?.endpoint();
        let (old, bystander) = (pod(lab, 0, "a")?, pod(lab, 0, "b")?);
        let servers = serve(&old.endpoint())?;
        let [mut stream, mut datagrams] = connect(&client, old.address)?;
        warm(lab, mode, 0, &mut stream)?;
        warm(lab, mode, 0, &mut datagrams)?;
        let capture = Capture::start(&bystander.namespace, POD_INTERFACE)?;

        drop(servers);
        lab.node(0).remove_pod("a")?;
        let new = lab.node(0).add_pod("c", Attachment::Bridge)?;
        ensure!(
            new.address == old.address,
            "the new pod has {}",
            new.address
        );
        let _servers = serve(&new.endpoint())?;
        announce(lab, &new, new.address)?;
        let start = Instant::now();
        datagrams
            .exchange(2_000, 100)
            .context("datagrams to the new pod")?;
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "served only after {:?}",
            start.elapsed()
        );
        // The new pod knows nothing of the connection, and says so.
        let broken = stream.exchange(100, 100);
        ensure!(
            broken.is_err(),
            "the new pod goes on with the old one's connection"
        );
        for mut connection in connect(&client, new.address)? {
            warm(lab, mode, 0, &mut connection)?;
        }
        let mac = mac_of(&bystander.namespace, POD_INTERFACE)?;
        let stray = addressed(&capture.stop()?, mac, old.address);
        ensure!(stray == 0, "another pod got {stray} packets");
        Ok(())
    });
}

#[test]
fn an_address_that_moves_between_live_pods_takes_its_flows_with_it() {
    in_both_modes(&Lab::builder().nodes(2), &[], |lab, mode| {
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let client = pod(lab, 1, "a")?.endpoint();
        let (before, after) = (pod(lab, 0, "a")?, pod(lab, 0, "b")?);
        let address = before.address;
        let servers = serve(&before.endpoint())?;
        let [_, mut datagrams] = connect(&client, address)?;
        warm(lab, mode, 0, &mut datagrams)?;

        drop(servers);
        let text = format!("{address}/24");
        let interface = POD_INTERFACE;
        before
            .namespace
            .run("ip", ["addr", "del", &text, "dev", interface])?;
        after
            .namespace
            .run("ip", ["addr", "add", &text, "dev", interface])?;
        let moved = Endpoint {
            namespace: after.namespace.clone(),
            address,
        };
        let _servers = serve(&moved)?;
        announce(lab, &after, address)?;
        let learned = Instant::now();
        datagrams
            .exchange(1_000, 100)
            .context("datagrams after the move")?;
        ensure!(
            learned.elapsed() < Duration::from_secs(3),
            "served only after {:?}",
            learned.elapsed()
        );
        let capture = Capture::start(&before.namespace, interface)?;
        warm(lab, mode, 0, &mut datagrams)?;
        let mac = mac_of(&before.namespace, interface)?;
        let stray = addressed(&capture.stop()?, mac, address);
        ensure!(
            stray == 0,
            "the pod that had the address got {stray} packets"
        );
        Ok(())
    });
}

#[test]
fn a_pod_that_sends_with_anothers_address_gets_none_of_its_packets() {
    in_both_modes(&Lab::builder().nodes(2), &[], |lab, mode| {
        lab.add_pods(2)?;
        lab.ping_matrix()?;
        let server = pod(lab, 1, "a")?;
        let (honest, liar) = (pod(lab, 0, "a")?, pod(lab, 0, "b")?);
        let _servers = serve(&server.endpoint())?;
        let [_, mut datagrams] = connect(&honest.endpoint(), server.address)?;
        warm(lab, mode, 0, &mut datagrams)?;

        let port = RawPort::open(&liar)?;
        let gateway = mac_of(&lab.node(0).namespace, "cni0")?;
        let ip = Ip {
            source: honest.address,
            destination: server.address,
            protocol: UDP,
            ttl: 64,
            tos: 0,
            id: 1,
            fragment: 0,
            options: Vec::new(),
        };
        let ports = [datagrams.served.source.port(), PORT];
        let packet = ip.packet(&packets::udp(&ip, ports, b"not mine"));
        let frame = [&gateway.octets[..], &port.mac.octets, &[8, 0], &packet].concat();
        let captures = [&liar, &honest].map(|pod| Capture::start(&pod.namespace, POD_INTERFACE));
        let [at_liar, at_honest] = captures;
        let (at_liar, at_honest) = (at_liar?, at_honest?);
        for _ in 0..20 {
            port.send(&frame)?;
        }
        datagrams.exchange(2_000, 100)?;
        warm(lab, mode, 0, &mut datagrams)?;
        let stolen = addressed(&at_liar.stop()?, port.mac, honest.address);
        let mac = mac_of(&honest.namespace, POD_INTERFACE)?;
        let answers = addressed(&at_honest.stop()?, mac, honest.address);
        ensure!(stolen == 0, "the pod got {stolen} packets of the other");
        ensure!(
            answers >= 40,
            "the owner of the address got {answers} packets"
        );
        Ok(())
    });
}

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
