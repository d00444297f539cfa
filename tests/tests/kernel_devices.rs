//! Devices that not every kernel has, as underlays and as pods' interfaces: skipped on a kernel that
//! lacks them. `cargo xtask test --kernel VERSION` runs these on kernels that have them.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use overlay_tests::{
    kernel::Means,
    lab::{Attachment, Lab, agent::Launch, scenario, underlay::NODE_INTERFACE},
    netkit::{self, NetkitMode},
    netns::Namespace,
    requirements::require_root,
    skip,
    traffic::{flow::SteadyFlow, ping, tcp},
    wait::wait_for,
};

const DEADLINE: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_millis(5);

/// Why nothing can be tried with such a device on this kernel; `None` if it can. `lines`: what
/// `ip -batch` is told.
fn lacks(lines: &str) -> Option<String> {
    require_root();
    if Means::promised().expect("a release") == Means::KernelTier {
        return Some("this kernel is too old for the programs".to_owned());
    }
    let thread = std::thread::current();
    let name = format!("ovl-lacks-{}-{:?}", std::process::id(), thread.id());
    let name = name.replace(['(', ')'], "");
    let namespace = Namespace::create(&name).expect("a network namespace");
    let made = namespace.ip_batch(lines);
    Namespace::delete(&name).expect("the namespace goes");
    made.err().map(|error| format!("{error:#}"))
}

/// Agents on both nodes with `interface` as the underlay, a pod on each, and a flow that becomes
/// fast.
fn check_underlay(lab: &Lab, interface: &str) -> Result<()> {
    for node in lab.nodes() {
        node.launch(&Launch {
            interface: Some(interface.to_owned()),
            ..Launch::new(lab.store(), &["--datapath=ebpf"])
        })?;
    }
    for node in lab.nodes() {
        node.wait_ready()?;
    }
    lab.add_pods(1)?;
    lab.wait_converged()?;
    lab.wait_attached()?;
    wait_for("pods to talk", DEADLINE, || lab.ping_matrix())?;
    let [from, to] = [0, 1].map(|index| lab.node(index).pods()[0].endpoint());
    let flow = SteadyFlow::start(&from, &to, INTERVAL)?;
    for node in lab.nodes() {
        node.wait_fast()?;
    }
    flow.stop()?.datagrams.ensure_lossless()
}

#[test]
fn flows_are_fast_over_a_vlan_sub_interface() {
    if let Some(reason) = lacks("link add x0 type veth\nlink add link x0 name x1 type vlan id 5\n")
    {
        skip!("no VLAN devices: {reason}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        for (node, host) in lab.nodes().iter().zip(1..) {
            let address = Ipv4Addr::new(172, 31, 0, host);
            node.namespace.ip_batch(&format!(
                "link add link {NODE_INTERFACE} name vlan5 type vlan id 5\n\
                 addr add {address}/24 dev vlan5\n\
                 link set vlan5 up\n"
            ))?;
        }
        check_underlay(lab, "vlan5")
    });
}

/// Its member is a veth, on which native XDP would cost more than it saves.
#[test]
fn flows_are_fast_over_a_bond_which_gets_no_guard_by_itself() {
    if let Some(reason) = lacks("link add x0 type bond\n") {
        skip!("no bonds: {reason}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        for node in lab.nodes() {
            let address = node.address;
            node.namespace.ip_batch(&format!(
                "link add bond0 type bond mode active-backup miimon 100\n\
                 addr flush dev {NODE_INTERFACE}\n\
                 link set {NODE_INTERFACE} down\n\
                 link set {NODE_INTERFACE} master bond0\n\
                 addr add {address}/24 dev bond0\n\
                 link set bond0 up\n"
            ))?;
        }
        check_underlay(lab, "bond0")?;
        for node in lab.nodes() {
            let links = node.pinned_links()?;
            let on_bond = links.get("bond0").cloned().unwrap_or_default();
            ensure!(!on_bond.iter().any(|hook| hook == "guard"), "{on_bond:?}");
        }
        Ok(())
    });
}

/// The underlay's addresses and routes are the VRF's. Sockets outside of it, which are etcd's here, are told to
/// take what comes by it.
#[test]
fn flows_are_fast_over_an_underlay_in_a_vrf() {
    if let Some(reason) = lacks("link add x0 type vrf table 7\n") {
        skip!("no VRFs: {reason}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        for node in lab.nodes() {
            node.namespace.ip_batch(&format!(
                "link add vrf0 type vrf table 7\n\
                 link set vrf0 up\n\
                 link set {NODE_INTERFACE} master vrf0\n\
                 route add 172.30.0.0/24 dev {NODE_INTERFACE}\n"
            ))?;
            node.namespace
                .set_sysctl("net/ipv4/tcp_l3mdev_accept", "1")?;
        }
        check_underlay(lab, NODE_INTERFACE)
    });
}

/// Flows from and to a pod on the first node whose interface is one side of a netkit pair.
fn check_netkit(mode: NetkitMode) {
    if let Some(reason) = netkit::missing() {
        skip!("{reason}");
    }
    scenario(Lab::builder().nodes(2), |lab| {
        lab.bring_up(1)?;
        let node = lab.node(0);
        let pod = node.add_pod("nk", Attachment::Netkit(mode))?;
        let far = lab.node(1).pods()[0].endpoint();
        wait_for("a netkit pod to reach another node", DEADLINE, || {
            ping::once(&pod.endpoint(), far.address).map(drop)
        })?;
        node.wait_attached(&pod.host_interface)?;
        let flow = SteadyFlow::start(&pod.endpoint(), &far, INTERVAL)?;
        for node in lab.nodes() {
            node.wait_fast()?;
        }
        flow.stop()?.datagrams.ensure_lossless()?;
        for (from, to) in [(&pod.endpoint(), &far), (&far, &pod.endpoint())] {
            tcp::transfer(from, to, tcp::Spec::bulk(256 << 10))?;
        }
        node.wait_fast_echoes(&pod.endpoint(), lab.node(1), &far)
    });
}

#[test]
fn flows_of_a_netkit_pod_are_fast_as_those_of_a_veth_are() {
    check_netkit(NetkitMode::L2);
}

#[test]
fn flows_of_a_netkit_pod_without_ethernet_addresses_are_fast() {
    check_netkit(NetkitMode::L3);
}
