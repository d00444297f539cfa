//! From one backend to another by a change of the network config and restarts.

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{
    lab::{Lab, scenario},
    skip,
    wait::wait_for,
};

use crate::{PATIENCE, bring_up, check_traffic, devices, lacks, pod, pod_routes, restart};

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{backend}"}}}}"#)
}

#[test]
fn switches_to_and_from_wireguard_and_ipip_leave_nothing_stale() {
    for kind in ["wireguard", "ipip local 192.0.2.1"] {
        if let Some(reason) = lacks(kind) {
            skip!("no {kind} devices: {reason}");
        }
    }
    scenario(Lab::builder().nodes(2).config(&config("vxlan")), |lab| {
        bring_up(lab)?;
        let subnets = |lab: &Lab| -> anyhow::Result<Vec<_>> {
            lab.nodes()
                .iter()
                .map(|node| node.subnet_env()?.subnet())
                .collect()
        };
        let before = subnets(lab)?;
        for (backend, device, route) in [
            ("wireguard", &["flannel-wg"][..], "dev flannel-wg proto 241"),
            (
                "ipip",
                &["flannel.ipip"],
                "dev flannel.ipip proto 241 onlink",
            ),
            ("wireguard", &["flannel-wg"], "dev flannel-wg proto 241"),
            ("host-gw", &[], "dev eth0 proto 241"),
            (
                "ipip",
                &["flannel.ipip"],
                "dev flannel.ipip proto 241 onlink",
            ),
            ("vxlan", &["flannel.1"], "dev flannel.1 proto 241 onlink"),
            ("wireguard", &["flannel-wg"], "dev flannel-wg proto 241"),
            ("vxlan", &["flannel.1"], "dev flannel.1 proto 241 onlink"),
        ] {
            lab.store().set_config(&config(backend))?;
            for node in lab.nodes() {
                restart(lab, node, Signal::SIGTERM)?;
            }
            wait_for(&format!("both nodes to run {backend}"), PATIENCE, || {
                for node in lab.nodes() {
                    let (found, routes) = (devices(node)?, pod_routes(node)?);
                    ensure!(found == device, "{found:?}");
                    ensure!(
                        routes.len() == 1 && routes[0].ends_with(route),
                        "{routes:?}"
                    );
                }
                lab.ping_matrix()
            })?;
            ensure!(subnets(lab)? == before, "{backend}: other subnets");
            let mtu = lab.node(0).subnet_env()?.mtu;
            let mtu = mtu.min(1400);
            check_traffic(&pod(lab, 0), &pod(lab, 1), mtu).context(backend)?;
        }
        Ok(())
    });
}
