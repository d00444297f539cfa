//! Rules of kube-proxy's nftables mode.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;

use super::{NodePort, Service, line};

/// Text for `nft -f`: one transaction that replaces the table.
pub(super) fn text(cluster: IpNetwork, local: IpNetwork, services: &[Service]) -> String {
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
        add_service(&mut chains, cluster, local, service);
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

fn add_service(chains: &mut String, cluster: IpNetwork, local: IpNetwork, service: &Service) {
    let Service { name, address, .. } = service;
    let (vip, port, protocol) = (address.ip(), address.port(), service.protocol.name());
    let (ip, addr, _) = nft_words(cluster);
    for (number, backend) in service.numbered() {
        let remember = if let Some(seconds) = service.affinity {
            line(
                chains,
                format_args!(
                    "set affinity-{name}-{number} {{ type {addr}; flags dynamic, timeout; timeout {seconds}s; }}"
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
            balance(ip, service, &all)
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
                balance(ip, service, &service.backends_in(local))
            ),
        ),
    }
}

fn balance(ip: &str, service: &Service, backends: &[(usize, SocketAddr)]) -> String {
    let name = service.name;
    let mut rules = String::new();
    if service.affinity.is_some() {
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
