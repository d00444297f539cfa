//! Packet filter rules: flannel's own, as `flanneld --ip-masq` installs them in iptables mode, a service,
//! and an alteration that keeps a flow off the fast path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::variant::Variant;
use crate::{
    lab::Node,
    rules::{Flavour, Protocol, Service},
};

/// Port that clients of an altered flow address. The first node makes it the next number, the
/// second node the one after that.
pub const ALTERED_PORT: u16 = 7_100;
/// Port that servers listen on, and the service's.
pub const SERVICE_PORT: u16 = 7_000;
/// The service's addresses.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10);

/// What clients of a service in the server's family ask.
pub fn service_of(server: IpAddr) -> SocketAddr {
    let address = match server {
        IpAddr::V4(_) => SERVICE.into(),
        IpAddr::V6(_) => SERVICE_IPV6.into(),
    };
    SocketAddr::new(address, SERVICE_PORT)
}

/// flannel's rules for a node with `subnet` of `network`.
pub fn install(node: &Node, network: IpNetwork, subnet: IpNetwork) -> Result<()> {
    let (restore, multicast) = if network.is_ipv4() {
        ("iptables-restore", "224.0.0.0/4")
    } else {
        ("ip6tables-restore", "ff00::/8")
    };
    let masq = "-m comment --comment \"flanneld masq\" -j";
    let forward = "-m comment --comment \"flanneld forward\" -j";
    let chain = "-A FLANNEL-POSTRTG";
    let script = format!(
        "{restore} --noflush <<'RULES'
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING {masq} FLANNEL-POSTRTG
{chain} -m mark --mark 0x4000/0x4000 {masq} RETURN
{chain} -s {subnet} -d {network} {masq} RETURN
{chain} -s {network} -d {subnet} {masq} RETURN
{chain} ! -s {network} -d {subnet} {masq} RETURN
{chain} -s {network} ! -d {multicast} {masq} MASQUERADE --random-fully
{chain} ! -s {network} -d {network} {masq} MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD {forward} FLANNEL-FWD
-A FLANNEL-FWD -s {network} {forward} ACCEPT
-A FLANNEL-FWD -d {network} {forward} ACCEPT
COMMIT
RULES
"
    );
    node.cmd("sh", ["-ec", &script]).map(drop)
}

/// An error unless flannel's rules are there exactly when they should be.
pub fn check(node: &Node, variant: &Variant) -> Result<()> {
    let wanted = variant.rules;
    let commands = ["iptables-save", "ip6tables-save"];
    for command in &commands[..=usize::from(variant.ipv6)] {
        let listed = node.cmd(command, [])?;
        let present = listed.contains("-A FLANNEL-POSTRTG") && listed.contains("-A FLANNEL-FWD");
        anyhow::ensure!(
            present == wanted,
            "{} {} flannel's rules:\n{listed}",
            node.name,
            if wanted { "lacks" } else { "has" }
        );
    }
    Ok(())
}

/// Makes a service of the server, for clients on `node`.
pub fn serve(node: &Node, network: IpNetwork, server: IpAddr) -> Result<()> {
    let services = [("BENCH-T", Protocol::Tcp), ("BENCH-U", Protocol::Udp)];
    let services = services.map(|(name, protocol)| Service {
        name,
        protocol,
        address: service_of(server),
        node_port: None,
        affinity: None,
        backends: vec![SocketAddr::new(server, SERVICE_PORT)],
    });
    crate::rules::install(node, Flavour::Iptables, network, &services)
}

/// Adds one to the port of datagrams to `port`, and takes another source port for them, without connection
/// tracking: at either node the pod's own end is altered.
pub fn alter(node: &Node, port: u16) -> Result<()> {
    let next = port + 1;
    let script = format!(
        "nft -f - <<'RULES'
table ip benchmark {{
    chain alter {{
        type filter hook forward priority mangle
        udp dport {port} udp sport set 999 udp dport set {next}
    }}
}}
RULES
"
    );
    node.cmd("sh", ["-ec", &script]).map(drop)
}
