//! Packets whose bytes are not all in the skb's linear part, which a test run cannot have: sent
//! into a pod's veth with the program attached.

use std::{
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
    prog::{
        Bench,
        fixture::{Fixture, TUNNELLED, VXLAN_PORT},
        node::on_node,
        packet::{Packet, Transport, pattern},
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

/// Waits until a packet with one of the outcomes was counted at the egress hook.
fn wait_for(bench: &mut Bench, outcomes: &[Outcome]) -> Result<Outcome> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let counted = bench.counted()?;
        let found = counted
            .iter()
            .find(|(_, outcome, _)| outcomes.contains(outcome));
        if let Some(&(Hook::Egress, outcome, _)) = found {
            return Ok(outcome);
        }
        sleep(Duration::from_millis(1));
    }
    bail!("none of {outcomes:?} was counted within 10 s")
}

#[test]
fn a_pods_tunnel_packet_is_dropped_wherever_the_linear_part_ends() -> Result<()> {
    on_node(|interfaces| {
        for interface in ["pod0", "eth0"] {
            let status = Command::new("ip")
                .args(["link", "set", interface, "mtu", "9000"])
                .status()
                .context("cannot start ip (package iproute2)")?;
            ensure!(status.success(), "ip: {status}");
        }
        let mut bench = Bench::load()?;
        bench.set(&Fixture::new(interfaces))?;
        bench.attach_ingress(Hook::Egress, "pod0")?;
        let socket = packet_socket(interfaces.eth0)?;
        setsockopt(&socket, PacketVnetHdr, &1)?;
        let injection = TUNNELLED
            .from_pod(Transport::Udp {
                src: 9,
                dst: VXLAN_PORT,
            })
            .with(|p| {
                p.dst = TUNNELLED.vtep.into();
                // Below a page the kernel makes every packet linear.
                p.payload = pattern(5000);
            });
        let with_options = injection.clone().with(|p| p.ip_options = vec![1; 40]);
        let passed = injection.clone().with(|p| {
            p.transport = Transport::Udp { src: 9, dst: 53 };
        });
        let rows: [(&Packet, Outcome); 3] = [
            (&injection, Outcome::PodTunnel),
            (&with_options, Outcome::PodTunnel),
            (&passed, Outcome::NotOverlay),
        ];
        for (packet, want) in rows {
            for linear in [14, 20, 34, 36, 38, 54, 74, 76, 78] {
                let message = [virtio_header(linear), packet.bytes()].concat();
                send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
                let got = wait_for(
                    &mut bench,
                    &[Outcome::PodTunnel, Outcome::NotOverlay, Outcome::IpOptions],
                )?;
                ensure!(
                    got == want,
                    "{got:?} instead of {want:?} with {linear} linear bytes: {packet:?}"
                );
            }
        }
        Ok(())
    })
}
