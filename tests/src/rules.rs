//! The rules kube-proxy writes for services, as it writes them in its iptables and in its nftables
//! mode: ClusterIP, NodePort with both external traffic policies, session affinity, hairpin,
//! the masquerade mark 0x4000 and the drop of invalid packets.

use std::{fmt::Write as _, fs, net::SocketAddr};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;

use crate::lab::Node;

/// Who writes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`, fed through `iptables-restore`.
    Iptables,
    /// `nft`, a table of its own with verdict maps.
    Nftables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// How a service is reached from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePort {
    /// `externalTrafficPolicy: Cluster`: any backend, the node's address as source.
    Masqueraded(u16),
    /// `externalTrafficPolicy: Local`: backends of the node only, the client's address as source.
    SourceKept(u16),
}

#[derive(Clone, Debug)]
pub struct Service {
    pub name: &'static str,
    pub protocol: Protocol,
    /// The cluster IP.
    pub address: SocketAddr,
    pub node_port: Option<NodePort>,
    /// `sessionAffinity: ClientIP`.
    pub affinity: bool,
    pub backends: Vec<SocketAddr>,
}

/// Installs the rules for `services` on `node`, in place of those installed before.
pub fn install(
    node: &Node,
    flavour: Flavour,
    cluster: IpNetwork,
    services: &[Service],
) -> Result<()> {
    let (local, iptables_program): (IpNetwork, _) = match cluster {
        IpNetwork::V4(_) => (node.subnet_env()?.subnet()?.into(), "iptables-nft"),
        IpNetwork::V6(_) => (node.subnet_env6()?.subnet()?.into(), "ip6tables-nft"),
    };
    let file = node.subnet_file.with_file_name("service-rules");
    let path = file.to_str().context("a path that is not UTF-8")?;
    match flavour {
        Flavour::Iptables => {
            fs::write(&file, iptables(cluster, local, services))?;
            let restore = format!("{iptables_program}-restore");
            node.cmd(&restore, ["--noflush", path])?;
            for (table, chain, target) in JUMPS {
                let rule = ["-t", table, "-C", chain, "-j", target];
                if node.cmd(iptables_program, rule).is_err() {
                    node.cmd(iptables_program, ["-t", table, "-I", chain, "-j", target])?;
                }
            }
        }
        Flavour::Nftables => {
            fs::write(&file, nftables(cluster, local, services))?;
            node.cmd("nft", ["-f", path])?;
        }
    }
    Ok(())
}

const JUMPS: [(&str, &str, &str); 4] = [
    ("nat", "PREROUTING", "KUBE-SERVICES"),
    ("nat", "OUTPUT", "KUBE-SERVICES"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
    ("filter", "FORWARD", "KUBE-FORWARD"),
];

impl Protocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Service {
    /// Backends with the number that is in the names of their chains.
    fn numbered(&self) -> impl Iterator<Item = (usize, SocketAddr)> {
        self.backends.iter().copied().enumerate()
    }

    fn backends_in(&self, subnet: IpNetwork) -> Vec<(usize, SocketAddr)> {
        let inside = |(_, backend): &(usize, SocketAddr)| subnet.contains(backend.ip());
        self.numbered().filter(inside).collect()
    }
}

/// Text for `iptables-restore --noflush`: chains it declares are emptied, all others stay.
fn iptables(cluster: IpNetwork, local: IpNetwork, services: &[Service]) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    for service in services {
        iptables_service(&mut chains, &mut rules, cluster, local, service);
    }
    format!(
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         COMMIT\n\
         *filter\n\
         :KUBE-FORWARD - [0:0]\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    )
}

fn iptables_service(
    chains: &mut String,
    rules: &mut String,
    cluster: IpNetwork,
    local: IpNetwork,
    service: &Service,
) {
    let Service { name, address, .. } = service;
    let (protocol, vip, port) = (service.protocol.name(), address.ip(), address.port());
    let mut chain = |name: &str| line(chains, format_args!(":{name} - [0:0]"));
    chain(&format!("KUBE-SVC-{name}"));
    line(
        rules,
        format_args!(
            "-A KUBE-SERVICES -d {vip} -p {protocol} --dport {port} -j KUBE-SVC-{name}\n\
             -A KUBE-SVC-{name} ! -s {cluster} -d {vip} -p {protocol} --dport {port} -j KUBE-MARK-MASQ"
        ),
    );
    let all: Vec<_> = service.numbered().collect();
    iptables_balance(rules, &format!("KUBE-SVC-{name}"), service, &all);
    match service.node_port {
        None => {}
        Some(NodePort::Masqueraded(port)) => {
            chain(&format!("KUBE-EXT-{name}"));
            line(
                rules,
                format_args!(
                    "-A KUBE-NODEPORTS -p {protocol} --dport {port} -j KUBE-EXT-{name}\n\
                     -A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n\
                     -A KUBE-EXT-{name} -j KUBE-SVC-{name}"
                ),
            );
        }
        Some(NodePort::SourceKept(port)) => {
            chain(&format!("KUBE-EXT-{name}"));
            chain(&format!("KUBE-SVL-{name}"));
            line(
                rules,
                format_args!(
                    "-A KUBE-NODEPORTS -p {protocol} --dport {port} -j KUBE-EXT-{name}\n\
                     -A KUBE-EXT-{name} -s {cluster} -j KUBE-SVC-{name}\n\
                     -A KUBE-EXT-{name} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ\n\
                     -A KUBE-EXT-{name} -m addrtype --src-type LOCAL -j KUBE-SVC-{name}\n\
                     -A KUBE-EXT-{name} -j KUBE-SVL-{name}"
                ),
            );
            let near = service.backends_in(local);
            iptables_balance(rules, &format!("KUBE-SVL-{name}"), service, &near);
        }
    }
    for (number, backend) in all {
        chain(&format!("KUBE-SEP-{name}-{number}"));
        let remember = if service.affinity {
            format!("-m recent --name {name}-{number} --set ")
        } else {
            String::new()
        };
        line(
            rules,
            format_args!(
                "-A KUBE-SEP-{name}-{number} -s {} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{name}-{number} -p {protocol} {remember}-j DNAT --to-destination {backend}",
                backend.ip()
            ),
        );
    }
}

/// Equal shares for the backends, after the one a client had before.
fn iptables_balance(
    rules: &mut String,
    chain: &str,
    service: &Service,
    backends: &[(usize, SocketAddr)],
) {
    let name = service.name;
    if service.affinity {
        for (number, _) in backends {
            line(
                rules,
                format_args!(
                    "-A {chain} -m recent --name {name}-{number} --rcheck --seconds 10800 --reap \
                     -j KUBE-SEP-{name}-{number}"
                ),
            );
        }
    }
    for (index, (number, _)) in backends.iter().enumerate() {
        let probability = match backends.len() - index {
            1 => String::new(),
            left => format!(
                "-m statistic --mode random --probability 0.{:010} ",
                10_000_000_000 / left as u64
            ),
        };
        line(
            rules,
            format_args!("-A {chain} {probability}-j KUBE-SEP-{name}-{number}"),
        );
    }
}

/// Text for `nft -f`: one transaction that replaces the table.
fn nftables(cluster: IpNetwork, local: IpNetwork, services: &[Service]) -> String {
    let mut chains = String::new();
    let mut addresses = Vec::new();
    let mut ports = Vec::new();
    for service in services {
        let Service { name, address, .. } = service;
        let protocol = service.protocol.name();
        let (vip, port) = (address.ip(), address.port());
        addresses.push(format!("{vip} . {protocol} . {port} : goto service-{name}"));
        if let Some(NodePort::Masqueraded(port) | NodePort::SourceKept(port)) = service.node_port {
            ports.push(format!("{protocol} . {port} : goto external-{name}"));
        }
        nftables_service(&mut chains, cluster, local, service);
    }
    let (ip, addr, loopback) = nft_words(cluster);
    format!(
        "table {ip} kube-proxy {{}}\n\
         delete table {ip} kube-proxy\n\
         table {ip} kube-proxy {{\n\
         chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}\n\
         {chains}\
         map service-ips {{ type {addr} . inet_proto . inet_service : verdict; {} }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}\n\
         chain services {{\n\
           {ip} daddr . meta l4proto . th dport vmap @service-ips\n\
           {ip} daddr != {loopback} fib daddr type local meta l4proto . th dport vmap @service-nodeports\n\
         }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat;\n\
           meta mark & 0x4000 == 0 return\n\
           meta mark set meta mark ^ 0x4000\n\
           masquerade fully-random\n\
         }}\n\
         chain filter-forward {{ type filter hook forward priority filter; ct state invalid drop; }}\n\
         }}\n",
        elements(&addresses),
        elements(&ports),
    )
}

/// What nft calls the family of a network and its addresses, and the loopback network.
const fn nft_words(network: IpNetwork) -> (&'static str, &'static str, &'static str) {
    match network {
        IpNetwork::V4(_) => ("ip", "ipv4_addr", "127.0.0.0/8"),
        IpNetwork::V6(_) => ("ip6", "ipv6_addr", "::1"),
    }
}

fn elements(list: &[String]) -> String {
    if list.is_empty() {
        return String::new();
    }
    format!("elements = {{ {} }};", list.join(", "))
}

fn nftables_service(chains: &mut String, cluster: IpNetwork, local: IpNetwork, service: &Service) {
    let Service { name, address, .. } = service;
    let (vip, port, protocol) = (address.ip(), address.port(), service.protocol.name());
    let (ip, addr, _) = nft_words(cluster);
    for (number, backend) in service.numbered() {
        let remember = if service.affinity {
            line(
                chains,
                format_args!(
                    "set affinity-{name}-{number} {{ type {addr}; flags dynamic, timeout; timeout 3h; }}"
                ),
            );
            format!("update @affinity-{name}-{number} {{ {ip} saddr }}")
        } else {
            String::new()
        };
        line(
            chains,
            format_args!(
                "chain endpoint-{name}-{number} {{\n\
                   {ip} saddr {} jump mark-for-masquerade\n\
                   {remember}\n\
                   meta l4proto {protocol} dnat to {backend}\n\
                 }}",
                backend.ip()
            ),
        );
    }
    let all: Vec<_> = service.numbered().collect();
    line(
        chains,
        format_args!(
            "chain service-{name} {{\n\
               {ip} daddr {vip} {protocol} dport {port} {ip} saddr != {cluster} jump mark-for-masquerade\n\
               {}\n\
             }}",
            nftables_balance(ip, service, &all)
        ),
    );
    match service.node_port {
        None => {}
        Some(NodePort::Masqueraded(_)) => line(
            chains,
            format_args!(
                "chain external-{name} {{ jump mark-for-masquerade; goto service-{name}; }}"
            ),
        ),
        Some(NodePort::SourceKept(_)) => line(
            chains,
            format_args!(
                "chain external-{name} {{\n\
                   {ip} saddr {cluster} goto service-{name}\n\
                   fib saddr type local jump mark-for-masquerade\n\
                   fib saddr type local goto service-{name}\n\
                   {}\n\
                 }}",
                nftables_balance(ip, service, &service.backends_in(local))
            ),
        ),
    }
}

fn nftables_balance(ip: &str, service: &Service, backends: &[(usize, SocketAddr)]) -> String {
    let name = service.name;
    let mut rules = String::new();
    if service.affinity {
        for (number, _) in backends {
            line(
                &mut rules,
                format_args!("{ip} saddr @affinity-{name}-{number} goto endpoint-{name}-{number}"),
            );
        }
    }
    let shares: Vec<_> = backends
        .iter()
        .enumerate()
        .map(|(index, (number, _))| format!("{index} : goto endpoint-{name}-{number}"))
        .collect();
    if !shares.is_empty() {
        line(
            &mut rules,
            format_args!(
                "numgen random mod {} vmap {{ {} }}",
                shares.len(),
                shares.join(", ")
            ),
        );
    }
    rules
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}
