//! Rules of kube-proxy's iptables mode.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;

use super::{NodePort, Service, line};

/// Text for `iptables-restore --noflush`: chains it declares are emptied, all others stay.
pub(super) fn text(cluster: IpNetwork, local: IpNetwork, services: &[Service]) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    for service in services {
        add_service(&mut chains, &mut rules, cluster, local, service);
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

fn add_service(
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
    balance(rules, &format!("KUBE-SVC-{name}"), service, &all);
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
            balance(rules, &format!("KUBE-SVL-{name}"), service, &near);
        }
    }
    for (number, backend) in all {
        chain(&format!("KUBE-SEP-{name}-{number}"));
        let remember = if service.affinity.is_some() {
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
fn balance(rules: &mut String, chain: &str, service: &Service, backends: &[(usize, SocketAddr)]) {
    let name = service.name;
    if let Some(seconds) = service.affinity {
        for (number, _) in backends {
            line(
                rules,
                format_args!(
                    "-A {chain} -m recent --name {name}-{number} --rcheck --seconds {seconds} --reap \
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
