//! Services of kube-proxy's IPVS mode: virtual servers of the kernel's load balancer, and the rules beside
//! them, which say what is masqueraded. kube-proxy has the addresses in sets; they are spelt out here.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;

use super::{NodePort, Protocol, Service, line};
use crate::lab::Node;

/// The device that has the cluster addresses, so that packets to them come in here. It is never up.
const DEVICE: &str = "kube-ipvs0";

/// As kube-proxy sets them.
const SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
];

/// Whether the kernel has what it takes: the load balancer, and bridges that let it see what the pods of one
/// bridge answer each other.
pub(super) fn is_there() -> bool {
    ["ip_vs", "br_netfilter"].into_iter().all(|module| {
        let loaded = std::process::Command::new("modprobe").arg(module).output();
        loaded.is_ok_and(|output| output.status.success())
    })
}

/// Makes the virtual servers of `node` those of `services`. `local`: the pods of the node.
pub(super) fn install(node: &Node, local: IpNetwork, services: &[Service]) -> Result<()> {
    if node.cmd("ip", ["link", "show", DEVICE]).is_err() {
        node.cmd("ip", ["link", "add", DEVICE, "type", "dummy"])?;
    }
    for service in services {
        let address = service.address.ip().to_string();
        node.cmd("ip", ["address", "replace", &address, "dev", DEVICE])?;
    }
    let file = node.subnet_file.with_file_name("virtual-servers");
    let path = file.to_str().context("a path that is not UTF-8")?;
    let present = node.cmd("ipvsadm", ["--save", "--numeric"])?;
    fs::write(&file, changes(&present, &servers(node, local, services)))?;
    let restore = format!("ipvsadm --restore <{path}");
    node.cmd("sh", ["-ec", &restore])?;
    SYSCTLS
        .iter()
        .try_for_each(|(key, value)| node.namespace.set_sysctl(key, value))
}

/// A virtual server.
struct VirtualServer {
    /// How `ipvsadm` names it.
    name: String,
    affinity: Option<u32>,
    backends: Vec<SocketAddr>,
}

fn servers(node: &Node, local: IpNetwork, services: &[Service]) -> Vec<VirtualServer> {
    let mut servers = Vec::new();
    for service in services {
        let mut add = |address: SocketAddr, backends: Vec<SocketAddr>| {
            let kind = match service.protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
            };
            servers.push(VirtualServer {
                name: format!("{kind} {address}"),
                affinity: service.affinity,
                backends,
            });
        };
        let host = match local {
            IpNetwork::V4(_) => node.address.into(),
            IpNetwork::V6(_) => node.address6().into(),
        };
        add(service.address, service.backends.clone());
        match service.node_port {
            None => {}
            Some(NodePort::Masqueraded(port)) => {
                add(SocketAddr::new(host, port), service.backends.clone());
            }
            Some(NodePort::SourceKept(port)) => {
                let near = service.backends_in(local).into_iter();
                add(
                    SocketAddr::new(host, port),
                    near.map(|(_, backend)| backend).collect(),
                );
            }
        }
    }
    servers
}

/// What `ipvsadm --restore` has to be told to get from what `ipvsadm --save` says to `servers`. What is open
/// to a backend over TCP goes on when it has gone; over UDP it ends.
fn changes(present: &str, servers: &[VirtualServer]) -> String {
    let named = |line: &str, words: usize| {
        let words: Vec<_> = line.split_whitespace().take(words).collect();
        words.join(" ")
    };
    let services: BTreeSet<_> = present
        .lines()
        .filter_map(|line| line.strip_prefix("-A "))
        .map(|line| named(line, 2))
        .collect();
    let backends: BTreeSet<_> = present
        .lines()
        .filter_map(|line| line.strip_prefix("-a "))
        .map(|line| named(line, 4))
        .collect();
    let mut text = String::new();
    let (mut kept, mut used) = (BTreeSet::new(), BTreeSet::new());
    for VirtualServer {
        name,
        affinity,
        backends: wanted,
    } in servers
    {
        let verb = if services.contains(name) { "-E" } else { "-A" };
        let persistent = affinity.map_or(String::new(), |seconds| format!(" -p {seconds}"));
        line(&mut text, format_args!("{verb} {name} -s rr{persistent}"));
        kept.insert(name.clone());
        for backend in wanted {
            let backend = format!("{name} -r {backend}");
            let verb = if backends.contains(&backend) {
                "-e"
            } else {
                "-a"
            };
            line(&mut text, format_args!("{verb} {backend} -m -w 1"));
            used.insert(backend);
        }
    }
    for gone in backends.difference(&used) {
        if !kept.contains(&named(gone, 2)) {
            continue;
        }
        if gone.starts_with("-t") {
            line(&mut text, format_args!("-e {gone} -m -w 0"));
        } else {
            line(&mut text, format_args!("-d {gone}"));
        }
    }
    for gone in services.difference(&kept) {
        line(&mut text, format_args!("-D {gone}"));
    }
    text
}

/// Text for `iptables-restore --noflush`.
pub(super) fn text(cluster: IpNetwork, services: &[Service]) -> String {
    let mut rules = String::new();
    for service in services {
        let (protocol, vip, port) = (
            service.protocol.name(),
            service.address.ip(),
            service.address.port(),
        );
        line(
            &mut rules,
            format_args!(
                "-A KUBE-SERVICES ! -s {cluster} -d {vip} -p {protocol} --dport {port} -j KUBE-MARK-MASQ"
            ),
        );
        if let Some(NodePort::Masqueraded(port)) = service.node_port {
            line(
                &mut rules,
                format_args!("-A KUBE-NODE-PORT -p {protocol} --dport {port} -j KUBE-MARK-MASQ"),
            );
        }
        for backend in &service.backends {
            // Ahead of the rule that lets alone what has no mark.
            line(
                &mut rules,
                format_args!(
                    "-I KUBE-POSTROUTING -s {address} -d {address} -p {protocol} --dport {} -j MASQUERADE",
                    backend.port(),
                    address = backend.ip()
                ),
            );
        }
    }
    format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODE-PORT - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\n\
         COMMIT\n\
         *filter\n\
         :KUBE-FORWARD - [0:0]\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    )
}
