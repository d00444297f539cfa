//! Large sends, and tunnels of the pods' own.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use overlay_common::outcome::Hook;
use overlay_tests::{
    differ::{Mode, in_both_modes, raw::POD_INTERFACE},
    lab::{Lab, Wire, family::LabFamily as _},
    traffic::{Endpoint, ping, tcp, udp},
};

/// Pod `a` of the first node, and pod `a` of the second.
fn ends(lab: &Lab) -> Result<Vec<Endpoint>> {
    Ipv4Addr::add_pods(lab, &['a'])
}

/// What segmentation and merging make of it on wires of both kinds, and fragments.
#[test]
fn large_sends_arrive_whole() {
    for wire in [Wire::Offloaded, Wire::Segmented] {
        let nodes = Lab::builder().nodes(2).wire(wire);
        in_both_modes(&nodes, &[], |lab, mode| {
            let ends = ends(lab)?;
            let (from, to) = (&ends[0], &ends[1]);
            for (from, to) in [(from, to), (to, from)] {
                tcp::transfer(from, to, tcp::Spec::bulk(4 << 20))?;
                udp::send_segmented(from, to, 1_200, 40, 5)?.ensure_lossless()?;
                udp::send_segmented(from, to, 1_422, 30, 5)?.ensure_lossless()?;
                let sizes = [1_422, 1_423, 4_000, 20_000, 65_000];
                udp::echo_each(from, to, &sizes, 3)?.ensure_lossless()?;
            }
            let counters = lab.node(0).counters()?;
            for hook in [Hook::Egress, Hook::Ingress] {
                let fast = counters.fast(hook);
                ensure!(
                    (fast > 50) == (mode == Mode::Fast),
                    "{fast} packets were fast"
                );
            }
            Ok(())
        });
    }
}

/// The pods build a tunnel of their own through ours, on vxlan's usual port and on flannel's.
#[test]
fn pods_can_run_a_tunnel_of_their_own() {
    let nodes = Lab::builder().nodes(2);
    in_both_modes(&nodes, &[], |lab, mode| {
        let ends = ends(lab)?;
        for (number, port) in [(1, "4789"), (2, "8472")] {
            let device = format!("vx{number}");
            let mut inner = Vec::new();
            for (own, peer) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
                let address = Ipv4Addr::new(192, 168, number, u8::try_from(inner.len() + 1)?);
                let (local, remote) = (own.address, peer.address);
                own.namespace.ip_batch(&format!(
                    "link add {device} mtu 1400 type vxlan id 42 dstport {port} \
                         local {local} remote {remote} dev {POD_INTERFACE}\n\
                     addr add {address}/24 dev {device}\n\
                     link set {device} up\n"
                ))?;
                inner.push(Endpoint {
                    namespace: own.namespace.clone(),
                    address,
                });
            }
            for (from, to) in [(&inner[0], &inner[1]), (&inner[1], &inner[0])] {
                ping::once(from, to.address)?;
                tcp::transfer(from, to, tcp::Spec::bulk(1 << 20))?;
                tcp::transfer(from, to, tcp::Spec::small_writes(5_000, 100))?;
                udp::send_segmented(from, to, 1_200, 20, 3)?.ensure_lossless()?;
            }
        }
        let dropped = lab.node(0).counters()?.dropped() + lab.node(1).counters()?.dropped();
        ensure!(dropped == 0, "{mode:?}: {dropped} packets were dropped");
        Ok(())
    });
}
