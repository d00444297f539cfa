//! Packets whose bytes are not all in the skb's linear part, which a test run cannot have: sent
//! into a pod's veth with the program attached.

use std::{
    fs,
    os::fd::AsRawFd as _,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    setsockopt_impl, sockopt_impl,
    sys::socket::{MsgFlags, send, setsockopt},
};
use overlay_common::outcome::{Hook, Outcome};
use overlay_tests::{
    in_both_families,
    prog::{
        Bench,
        fixture::{Cluster, Fixture, VXLAN_PORT},
        node::on_node,
        oddities::Oddities,
        packet::{Transport, pattern},
    },
    sys::packet_socket,
};

sockopt_impl!(
    /// Messages begin with a `struct virtio_net_hdr`.
    PacketVnetHdr,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    libc::c_int
);

/// `struct virtio_net_hdr` in front of a frame: neither segments nor a checksum to fill in, and
/// this many bytes to put into the linear part.
fn virtio_header(linear: u16) -> Vec<u8> {
    [&[0, 0][..], &linear.to_ne_bytes(), &[0; 6]].concat()
}

/// Waits until a packet was counted at the egress hook.
fn wait_for<F: Cluster>(bench: &mut Bench<F>) -> Result<Outcome> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if let [(Hook::Egress, outcome, _), ..] = bench.counted()?[..] {
            return Ok(outcome);
        }
        sleep(Duration::from_millis(1));
    }
    bail!("nothing was counted within 10 s")
}

fn a_pods_tunnel_packet_is_dropped_wherever_the_linear_part_ends<F: Oddities>() -> Result<()> {
    /// At and between the ends of headers.
    const LINEAR: [u16; 14] = [14, 20, 34, 36, 38, 54, 56, 58, 62, 74, 76, 78, 94, 110];

    on_node(|interfaces| {
        for interface in ["pod0", "eth0"] {
            let status = Command::new("ip")
                .args(["link", "set", interface, "mtu", "9000"])
                .status()
                .context("cannot start ip (package iproute2)")?;
            ensure!(status.success(), "ip: {status}");
        }
        // What the pod's kernel sends by itself would be counted with the packets of the test.
        fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1")?;
        let mut bench = Bench::<F>::load()?;
        bench.set(&Fixture::new(interfaces))?;
        bench.attach_ingress(Hook::Egress, "pod0")?;
        let socket = packet_socket(interfaces.eth0)?;
        setsockopt(&socket, PacketVnetHdr, &1)?;
        let injection = F::TUNNELLED
            .from_pod(Transport::Udp {
                src: 9,
                dst: VXLAN_PORT,
            })
            .with(|p| {
                p.dst = F::TUNNELLED.vtep.into();
                // Below a page the kernel makes every packet linear.
                p.payload = pattern(5000);
            });
        let other_port = injection.clone().with(|p| {
            p.transport = Transport::Udp { src: 9, dst: 53 };
        });
        let dropped = F::injections(&injection)
            .into_iter()
            .map(|(_, packet)| (Outcome::PodTunnel, packet));
        let passed = F::harmless(&injection)
            .into_iter()
            .map(|(outcome, _, packet)| (outcome, packet));
        let rows = dropped.chain(passed).chain([
            (Outcome::PodTunnel, injection.clone()),
            (Outcome::NotOverlay, other_port),
        ]);
        for (want, packet) in rows {
            let frame = packet.bytes();
            for linear in LINEAR
                .into_iter()
                .filter(|&len| usize::from(len) <= frame.len())
            {
                let message = [&virtio_header(linear)[..], &frame].concat();
                send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
                let got = wait_for(&mut bench)?;
                ensure!(
                    got == want,
                    "{got:?} instead of {want:?} with {linear} linear bytes: {packet:?}"
                );
            }
        }
        Ok(())
    })
}

in_both_families! {
    a_pods_tunnel_packet_is_dropped_wherever_the_linear_part_ends,
}
