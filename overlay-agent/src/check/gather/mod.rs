//! Looks at this host. Nothing is changed, no module loaded and no table of rules created by it.

mod ethtool;
mod files;
pub mod rules;
mod sockets;

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use overlay_common::config::{FASTPATH_OFF, TUNNEL_UDP};

use super::{
    facts::{Facts, Overlay, SubnetFile, Underlay, Version},
    told,
};
use crate::{
    datapath::{Absence, DatapathError},
    filter::exec::Executor,
    model::Family,
    netlink::{LinkDump, LinkKind, LinkTable, Netlink, Subnets},
    subnet_env::{Previous, atomic, dotenv::Dotenv},
    underlay::{self, HostSnapshot},
    view::{self, KernelTier, Snapshot, Tier},
};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    pub subnet_file: PathBuf,
    /// Above the host's `/etc`, `/run` and `/usr`.
    pub root: PathBuf,
}

/// The facts, and what could not be looked at, in sentences.
pub async fn gather(snapshot: &Snapshot, places: &Places) -> (Facts, Vec<String>) {
    let mut missing = snapshot.kernel.missing.clone();
    let mut facts = Facts {
        kernel: Version::parse(&read("/proc/sys/kernel/osrelease").unwrap_or_default()),
        conntrack: conntrack(),
        mac_policy: None,
        cni: files::cni(&places.root.join("etc/cni/net.d")),
        subnet_env: subnet_file(&places.subnet_file),
        ..Facts::default()
    };
    let host = match underlay::snapshot(None).await {
        Ok(host) => host,
        Err(error) => {
            missing.push(format!("the underlay is left out: {error}"));
            HostSnapshot::default()
        }
    };
    facts.overlays = overlays(snapshot, &host, facts.subnet_env.as_ref());
    let ports = facts.overlays.iter().filter_map(|overlay| overlay.port);
    facts.udp_sockets = sockets::at(&ports.collect());
    match &snapshot.ebpf {
        Ok(tier) => {
            let ipv4 = tier.ipv4.as_ref().map(|overlay| overlay.config.fastpath);
            let ipv6 = tier.ipv6.as_ref().map(|overlay| overlay.config.fastpath);
            let mut modes = ipv4.into_iter().chain(ipv6);
            facts.is_fast = modes.any(|mode| mode != FASTPATH_OFF);
        }
        Err(DatapathError::KernelTier { absence }) if *absence != Absence::Asked => {
            facts.no_programs = Some(absence.to_string());
        }
        Err(_) => {}
    }
    match async { Netlink::connect()?.dump_links().await }.await {
        Ok(dump) => take_links(&mut facts, dump),
        Err(error) => missing.push(format!("interfaces are left out: {error}")),
    }
    take_settings(&mut facts);
    let devices: Vec<String> = facts
        .devices()
        .map(|device| device.ifname.clone())
        .collect();
    let underlays: BTreeSet<String> = { facts.overlays.iter() }
        .filter_map(|overlay| Some(overlay.underlay.as_ref()?.name.clone()))
        .collect();
    if let Some(device) = devices.first() {
        facts.mac_policy = files::mac_policy(&places.root, device);
    }
    let executor = Executor::from_env();
    let interfaces = devices.into_iter().chain(underlays);
    facts.ethtool = ethtool::ask(&executor, interfaces, &mut missing).await;
    facts.rules = rules::read(&executor, &mut missing).await;
    match told::ask() {
        Ok(told) => {
            let told = told.unwrap_or_default();
            facts.duplicates = told.duplicates;
            facts.clock_ahead_seconds = told.clock_ahead_seconds;
        }
        Err(error) => missing.push(format!(
            "what the agent knows of leases is left out: {error}"
        )),
    }
    (facts, missing)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The families' overlays: what the maps say, or where there are none the kernel and the subnet file.
pub fn overlays(
    snapshot: &Snapshot,
    host: &HostSnapshot,
    file: Option<&SubnetFile>,
) -> Vec<Overlay> {
    let KernelTier { ipv4, ipv6, .. } = &snapshot.kernel;
    let tier = snapshot.ebpf.as_ref().ok();
    let said = file.map(|file| &file.said);
    let told = |ipv6: bool| Told {
        network: said.and_then(|said| {
            if ipv6 {
                said.ipv6_network.map(IpNetwork::from)
            } else {
                said.ipv4_network.map(IpNetwork::from)
            }
        }),
        mtu: file.and_then(|file| file.mtu),
    };
    let ipv4 = {
        let pinned = tier.and_then(|tier| tier.ipv4.as_ref());
        overlay(pinned, ipv4.as_ref(), host, &told(false))
    };
    let ipv6 = {
        let pinned = tier.and_then(|tier| tier.ipv6.as_ref());
        overlay(pinned, ipv6.as_ref(), host, &told(true))
    };
    ipv4.into_iter().chain(ipv6).collect()
}

/// What the subnet file says of a family.
struct Told {
    network: Option<IpNetwork>,
    mtu: Option<u32>,
}

/// What the maps say, or where there are none the kernel.
fn overlay<F: Family>(
    pinned: Option<&view::Overlay<F>>,
    tier: Option<&Tier>,
    host: &HostSnapshot,
    told: &Told,
) -> Option<Overlay> {
    let tier = tier.cloned().unwrap_or_default();
    let Some(pinned) = pinned else {
        let device = tier.device.as_ref()?;
        return Some(Overlay {
            subnet: None,
            network: told.network,
            vtep: device.vtep?,
            underlay: underlay_of(device.vtep?, host),
            vtep_mac: None,
            vni: device.vni,
            port: device.port,
            pod_mtu: told.mtu,
            tier,
        });
    };
    let config = &pinned.config;
    let network = |address: F::Be, mask: F::Be| {
        let (address, mask) = (F::Address::from(address), F::Address::from(mask));
        IpNetwork::with_netmask(address.into(), mask.into()).ok()
    };
    let vtep: IpAddr = F::Address::from(config.vtep).into();
    let has_tunnel = config.vtep_ifindex != 0;
    let has_frames = config.tunnel != TUNNEL_UDP;
    // What the device should have, whether or not it is there.
    let [high, middle, low] = config.vni;
    let port = u16::from_be_bytes(config.vxlan_port);
    let port = Some(port).filter(|port| has_tunnel && *port != 0);
    Some(Overlay {
        subnet: network(config.subnet, config.subnet_mask),
        network: network(config.network, config.network_mask),
        vtep,
        underlay: underlay_of(vtep, host),
        vtep_mac: (has_tunnel && has_frames).then(|| config.vtep_mac.to_string()),
        vni: { port.filter(|_| has_frames) }.map(|_| u32::from_be_bytes([0, high, middle, low])),
        port,
        pod_mtu: Some(config.pod_mtu),
        tier,
    })
}

fn underlay_of(address: IpAddr, host: &HostSnapshot) -> Option<Underlay> {
    let owned = host.addresses.iter().find(|owned| owned.ip == address)?;
    let link = host
        .links
        .iter()
        .find(|link| link.ifindex == owned.ifindex)?;
    Some(Underlay {
        name: link.name.clone(),
        mtu: link.mtu,
    })
}

fn take_links(facts: &mut Facts, dump: LinkDump) {
    facts.links.clone_from(&dump.links);
    let mut table = LinkTable::default();
    table.replace(dump);
    let mut subnets = Subnets::default();
    for overlay in &facts.overlays {
        match overlay.subnet {
            Some(IpNetwork::V4(subnet)) => subnets.ipv4 = Some(subnet),
            Some(IpNetwork::V6(subnet)) => subnets.ipv6 = Some(subnet),
            None => {}
        }
    }
    let mut names = BTreeSet::new();
    for link in table.links() {
        if let Some(gateway) = table.gateway_of_pod(link, subnets) {
            facts.bridged |= gateway.kind == LinkKind::Bridge;
            names.extend([&gateway.name, &link.name].map(String::clone));
        }
    }
    facts.pods = names.into_iter().collect();
}

/// Settings that pitfalls are made of. The calling thread's network namespace decides what they are.
fn take_settings(facts: &mut Facts) {
    let mut names: Vec<String> = [
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.bridge.bridge-nf-call-iptables",
        "net.netfilter.nf_conntrack_tcp_be_liberal",
        "net.ipv4.conf.all.rp_filter",
    ]
    .map(str::to_owned)
    .to_vec();
    let devices = facts.devices().map(|device| &device.ifname);
    let underlays = facts.overlays.iter().filter_map(|o| o.underlay.as_ref());
    for interface in devices.chain(underlays.map(|underlay| &underlay.name)) {
        names.push(format!("net.ipv4.conf.{interface}.rp_filter"));
    }
    for name in names {
        if let Some(value) = read(setting_path(&name)) {
            facts.settings.insert(name, value.trim().to_owned());
        }
    }
}

/// Names of interfaces have dots, too.
fn setting_path(name: &str) -> PathBuf {
    let rp_filter = name
        .strip_prefix("net.ipv4.conf.")
        .and_then(|rest| rest.strip_suffix(".rp_filter"));
    match rp_filter {
        Some(interface) => Path::new("/proc/sys/net/ipv4/conf")
            .join(interface)
            .join("rp_filter"),
        None => Path::new("/proc/sys").join(name.replace('.', "/")),
    }
}

fn conntrack() -> Option<(u64, u64)> {
    let number = |name: &str| {
        let text = read(Path::new("/proc/sys/net/netfilter").join(name))?;
        text.trim().parse().ok()
    };
    Some((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
}

pub fn subnet_file(path: &Path) -> Option<SubnetFile> {
    let text = atomic::read(path).ok()??;
    let mtu = Dotenv::parse(&text)
        .get("FLANNEL_MTU")
        .and_then(|mtu| mtu.trim().parse().ok());
    Some(SubnetFile {
        path: path.display().to_string(),
        mtu,
        said: Previous::parse(&text),
    })
}
