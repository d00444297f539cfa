//! From one backend to another by a change of the network config and restarts.

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    backends::{Backend, every_switch},
    lab::{Lab, scenario},
    skip,
    wait::wait_for,
};

use crate::{PATIENCE, bring_up, check_traffic, lacks, pod, restart};

#[test]
fn each_backend_gives_way_to_each_other_where_the_kernel_has_all() {
    for kind in ["wireguard", "ipip local 192.0.2.1"] {
        if let Some(reason) = lacks(kind) {
            skip!("no {kind} devices: {reason}");
        }
    }
    let first = Backend::Vxlan;
    scenario(Lab::builder().nodes(2).config(&first.config()), |lab| {
        bring_up(lab)?;
        let subnets = |lab: &Lab| -> anyhow::Result<Vec<_>> {
            lab.nodes()
                .iter()
                .map(|node| node.subnet_env()?.subnet())
                .collect()
        };
        let before = subnets(lab)?;
        let all = [
            first,
            Backend::WireGuard,
            Backend::IpIp,
            Backend::HostGw,
            Backend::Udp,
            Backend::Extension,
        ];
        for backend in every_switch(&all).into_iter().skip(1) {
            lab.store().set_config(&backend.config())?;
            for node in lab.nodes() {
                restart(lab, node, Signal::SIGTERM)?;
            }
            wait_for(&format!("both nodes to run {backend}"), PATIENCE, || {
                backend.check(lab.node(0), lab.node(1))?;
                backend.check(lab.node(1), lab.node(0))?;
                lab.ping_matrix()
            })?;
            ensure!(subnets(lab)? == before, "{backend}: other subnets");
            let mtu = lab.node(0).subnet_env()?.mtu;
            let mtu = mtu.min(1400);
            check_traffic(&pod(lab, 0), &pod(lab, 1), mtu).with_context(|| backend.to_string())?;
        }
        Ok(())
    });
}
