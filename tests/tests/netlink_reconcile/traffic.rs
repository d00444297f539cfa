//! Two nodes of one process, each in a network namespace of its own, exchange packets through the
//! kernel tier alone.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use overlay_agent::{
    backend::{Backend, Kind as _, Vxlan, marks},
    model::{Desired, LocalNode, Underlay, V4, VxlanEnd},
    netlink::Netlink,
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::{in_private_netns, run};

use crate::node::{index_of, net};

/// Node `n` has address `192.168.0.<n>` and subnet `10.5.<n>.0/24`.
fn desired(n: u8, backend: Vxlan) -> Desired {
    let peer = 3 - n;
    let address = Ipv4Addr::new(192, 168, 0, n);
    let mac = |n| MacAddr::new([0x02, 0, 0, 0, 0, n]);
    let subnet = net(&format!("10.5.{peer}.0/24"));
    let end = VxlanEnd::new(mac(peer));
    let peer = Vxlan::peer_at::<V4>(subnet, Ipv4Addr::new(192, 168, 0, peer), end);
    let network = net("10.5.0.0/16");
    let own = net(&format!("10.5.{n}.0/24"));
    Desired {
        local: LocalNode {
            network,
            subnet: own,
            underlay: Underlay {
                ifindex: index_of("eth0"),
                name: "eth0".to_owned(),
                mtu: 1500,
                hardware: false,
                ethernet: true,
                address,
                public_ip: address,
            },
            forwarding: backend.forwarding::<V4>(),
            device: backend.own_device(network, own),
            vtep_mac: mac(n),
            lease_data: None,
        },
        peers: [(subnet, peer)].into(),
    }
}

/// Programs node `n` in the calling thread's namespace.
async fn program(n: u8, backend: Vxlan) {
    let desired = desired(n, backend);
    let netlink = Netlink::connect().expect("netlink");
    let spec = backend.device(&desired.local.underlay);
    let mac = Some(desired.local.vtep_mac);
    let vtep = netlink.ensure_vtep(&spec, mac).await.expect("device");
    let summary = netlink
        .reconcile(&desired, Some(&vtep), marks(&Backend::from(Vxlan::DEFAULT)))
        .await;
    let summary = summary.expect("reconcile");
    assert!(summary.failed.is_empty(), "{:?}", summary.failed);
}

/// Programs both nodes and sends a full-size datagram from one's tunnel address to the other's and
/// back. The channels keep the steps in order; when one side fails the other fails with it.
fn exchange(backends: [Vxlan; 2]) {
    let (send_namespace, namespace) = channel();
    let (send_plugged, plugged) = channel();
    let (send_ready, ready) = channel();
    let (keep_server, client_done) = channel::<()>();
    let server = thread::spawn(move || {
        in_private_netns(move || async move {
            let this_thread = fs::read_link("/proc/thread-self").expect("/proc/thread-self");
            let namespace = format!("/proc/{}/ns/net", this_thread.display());
            send_namespace.send(namespace).expect("the client lives");
            plugged.recv().expect("the client plugs the wire in");
            run("ip addr add 192.168.0.2/24 dev eth0");
            run("ip link set eth0 up");
            program(2, backends[1]).await;
            let socket = bound("10.5.2.0:7000");
            send_ready.send(()).expect("the client lives");
            let mut buffer = [0; 2000];
            let (length, from) = socket.recv_from(&mut buffer).expect("a request");
            socket.send_to(&buffer[..length], from).expect("a reply");
            assert!(
                client_done.recv().is_err(),
                "ends when the client drops its side"
            );
        });
    });
    in_private_netns(move || async move {
        let namespace = namespace.recv().expect("the server's namespace");
        run("ip link add eth0 type veth peer name wire0");
        run(&format!("ip link set wire0 netns {namespace} name eth0"));
        run("ip addr add 192.168.0.1/24 dev eth0");
        run("ip link set eth0 up");
        send_plugged.send(()).expect("the server lives");
        program(1, backends[0]).await;
        ready.recv().expect("the server is ready");
        let socket = bound("10.5.1.0:0");
        let payload: Vec<_> = (0..1400_u32).map(|n| n.to_le_bytes()[0]).collect();
        socket.send_to(&payload, "10.5.2.0:7000").expect("send");
        let mut buffer = [0; 2000];
        let (length, from) = socket.recv_from(&mut buffer).expect("the reply");
        assert_eq!(&buffer[..length], payload);
        assert_eq!(
            from.to_string(),
            "10.5.2.0:7000",
            "the source address is kept"
        );
        drop(keep_server);
    });
    server.join().expect("the server");
}

fn bound(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("the tunnel address");
    let patience = Some(Duration::from_secs(10));
    socket.set_read_timeout(patience).expect("a timeout");
    socket
}

#[test]
fn tunnel_addresses_of_two_nodes_reach_each_other() {
    exchange([Vxlan::DEFAULT; 2]);
}

#[test]
fn one_node_may_route_directly_while_the_other_tunnels() {
    let direct = Vxlan {
        direct_routing: true,
        ..Vxlan::DEFAULT
    };
    exchange([direct, direct]);
    exchange([Vxlan::DEFAULT, direct]);
}
