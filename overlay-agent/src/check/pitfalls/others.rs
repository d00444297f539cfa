//! Other programs on the host that want the same.

use crate::{
    check::{facts::Facts, finding::Finding},
    netlink::{Link, LinkKind},
};

/// Devices of other network plugins, by how their names begin, and whose they are.
const DEVICES: [(&str, &str); 12] = [
    ("cilium_", "Cilium"),
    ("lxc_health", "Cilium"),
    ("vxlan.calico", "Calico"),
    ("vxlan-v6.calico", "Calico"),
    ("wireguard.cali", "Calico"),
    ("cali", "Calico"),
    ("weave", "Weave Net"),
    ("vethwe-", "Weave Net"),
    ("kube-bridge", "kube-router"),
    ("antrea-gw", "Antrea"),
    ("ovn-k8s-", "OVN-Kubernetes"),
    ("genev_sys_", "Open vSwitch"),
];

/// The kernel hands a packet to the first that has the port.
pub fn port_taken(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for overlay in &facts.overlays {
        let (Some(port), Some(vni)) = (overlay.port, overlay.vni) else {
            continue;
        };
        let is_there = |address: std::net::IpAddr| {
            address == overlay.vtep
                || (address.is_unspecified() && (address.is_ipv6() || overlay.vtep.is_ipv4()))
        };
        let mut sockets = facts.udp_sockets.iter();
        if let Some(socket) = sockets.find(|s| s.port == port && is_there(s.address)) {
            findings.push(Finding::error(
                "port_taken",
                format!(
                    "{} has a socket at UDP port {port}, which tunnel packets are sent to",
                    socket.process
                ),
                "stop it, or set another \"Port\" in the network config",
            ));
        }
        let device = overlay.tier.device.as_ref().map(|device| device.ifindex);
        let others = facts
            .links
            .iter()
            .filter(|link| Some(link.ifindex) != device);
        for (name, why) in others.filter_map(|link| rival(link, port, vni, overlay.vtep.is_ipv4()))
        {
            findings.push(Finding::error(
                "port_taken",
                format!("the vxlan device {name} has UDP port {port} as well, {why}: one of the two gets nothing"),
                format!("remove {name} if nobody needs it, or set another \"Port\" or \"VNI\" in the network config"),
            ));
        }
    }
    findings
}

fn rival(link: &Link, port: u16, vni: u32, is_ipv4: bool) -> Option<(&str, &'static str)> {
    let LinkKind::Vxlan(vxlan) = &link.kind else {
        return None;
    };
    if vxlan.port != port || !link.up || vxlan.local.is_some_and(|l| l.is_ipv4() != is_ipv4) {
        return None;
    }
    let why = if vxlan.exotic && vxlan.vni == 0 {
        "and takes every VNI"
    } else if vxlan.vni == vni {
        "and the same VNI"
    } else {
        return None;
    };
    Some((&link.name, why))
}

/// What another network plugin left behind still takes packets, or pods.
pub fn other_cni(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (start, whose) in DEVICES {
        let named: Vec<&str> = { facts.links.iter() }
            .filter(|link| link.name.starts_with(start))
            .map(|link| link.name.as_str())
            .collect();
        let Some(first) = named.first() else { continue };
        findings.push(Finding::warning(
            "other_cni",
            format!(
                "there are interfaces of {whose}, such as {first} ({} in all): its rules, routes or programs may \
                 take packets away",
                named.len()
            ),
            format!("if {whose} is not used any more: remove its interfaces, its rules and its programs, or restart the machine"),
        ));
    }
    let is_flannels = |types: &[String]| types.iter().any(|kind| kind == "flannel");
    if let Some((file, types)) = facts.cni.first()
        && !is_flannels(types)
        && let Some((flannels, _)) = facts.cni.iter().find(|(_, types)| is_flannels(types))
    {
        findings.push(Finding::warning(
            "other_cni",
            format!(
                "{file} comes before {flannels}, and the container runtime takes the first: pods are given to the \
                 plugin {}",
                types.first().map_or("that it names", String::as_str)
            ),
            format!("remove {file}, if that plugin is not wanted"),
        ));
    }
    findings
}
