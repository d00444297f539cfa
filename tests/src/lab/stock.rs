//! A kernel-only stand-in for a node that runs stock flanneld with the vxlan backend: the same
//! device settings, the same kernel objects, the same lease record. It follows the other leases
//! when it is told to.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{
    node::Node,
    random_mac,
    store::Store,
    underlay::{NODE_INTERFACE, UNDERLAY_MTU},
};

/// The cluster's settings as flannel reads them from the config, defaults filled in.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub network: Option<IpNetwork>,
    pub network6: Option<IpNetwork>,
    /// Whether the network has IPv4, and whether it has IPv6.
    pub ipv4: bool,
    pub ipv6: bool,
    pub vni: u64,
    /// 0 leaves the choice to the kernel: 8472.
    pub port: u64,
    pub direct_routing: bool,
}

/// The subnets of one node.
#[derive(Clone, Copy, Debug)]
pub struct Subnets {
    ipv4: Option<IpNetwork>,
    ipv6: Option<IpNetwork>,
}

/// The stand-in's state: what flanneld keeps in memory.
#[derive(Debug)]
pub struct Stock {
    sides: Vec<StockSide>,
}

/// One address family of the stand-in.
#[derive(Debug)]
struct StockSide {
    cluster: Cluster,
    subnet: IpNetwork,
    /// Its own address on the underlay.
    local: IpAddr,
    peers: BTreeMap<String, StockPeer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StockPeer {
    subnet: IpNetwork,
    public_ip: String,
    vtep_mac: String,
    direct: bool,
}

impl Cluster {
    pub fn parse(config: &str) -> Result<Self> {
        let config: Value = serde_json::from_str(config).context("network config")?;
        let network = |key: &str| -> Result<Option<IpNetwork>> {
            let text = config[key].as_str();
            Ok(text.map(str::parse).transpose()?)
        };
        let backend = &config["Backend"];
        Ok(Self {
            network: network("Network")?,
            network6: network("IPv6Network")?,
            ipv4: config["EnableIPv4"].as_bool().unwrap_or(true),
            ipv6: config["EnableIPv6"].as_bool().unwrap_or(false),
            vni: backend["VNI"].as_u64().unwrap_or(1),
            port: backend["Port"].as_u64().unwrap_or(0),
            direct_routing: backend["DirectRouting"].as_bool().unwrap_or(false),
        })
    }
}

impl Subnets {
    /// As in a lease's key, with slashes instead of dashes.
    pub fn parse(text: &str) -> Result<Self> {
        let mut subnets = Self {
            ipv4: None,
            ipv6: None,
        };
        for part in text.split('&') {
            let subnet: IpNetwork = part.parse()?;
            if subnet.is_ipv4() {
                // Flannel's zero value stands for "none".
                subnets.ipv4 = Some(subnet).filter(|subnet| subnet.prefix() > 0);
            } else {
                subnets.ipv6 = Some(subnet);
            }
        }
        Ok(subnets)
    }

    fn key(self) -> String {
        let ipv4 = self.ipv4.map_or("0.0.0.0/0".to_owned(), |s| s.to_string());
        let ipv6 = self.ipv6.map_or(String::new(), |s| format!("&{s}"));
        format!("{ipv4}{ipv6}").replace('/', "-")
    }
}

impl Stock {
    /// Does what flanneld does at start: devices, lease, addresses, `subnet.env`. A device that is
    /// there is adopted with its MAC address.
    pub(super) fn start(
        node: &Node,
        store: &Store,
        cluster: &Cluster,
        subnets: Subnets,
    ) -> Result<Self> {
        let ipv4 = subnets.ipv4.map(|subnet| (subnet, node.address.into()));
        let ipv6 = subnets.ipv6.map(|subnet| (subnet, node.address6().into()));
        let mut sides = Vec::new();
        for (subnet, local) in ipv4.into_iter().chain(ipv6) {
            let side = StockSide {
                cluster: cluster.clone(),
                subnet,
                local,
                peers: BTreeMap::new(),
            };
            side.start(node)?;
            sides.push(side);
        }
        let stock = Self { sides };
        store.put_lease(&subnets.key(), &stock.lease(node)?)?;
        std::fs::write(&node.subnet_file, subnet_env(cluster, subnets)?)?;
        Ok(stock)
    }

    fn lease(&self, node: &Node) -> Result<String> {
        let side = |ipv6: bool| self.sides.iter().find(|side| side.local.is_ipv6() == ipv6);
        let address = side(false).map_or("0.0.0.0".to_owned(), |side| side.local.to_string());
        let address6 = side(true).map_or("null".to_owned(), |side| format!("\"{}\"", side.local));
        let mut lease =
            format!(r#"{{"PublicIP":"{address}","PublicIPv6":{address6},"BackendType":"vxlan""#);
        for (name, side) in [("BackendData", side(false)), ("BackendV6Data", side(true))] {
            if let Some(side) = side {
                let (vni, mac) = (side.cluster.vni, node.mac(&side.device())?);
                write!(lease, r#","{name}":{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)?;
            }
        }
        lease.push('}');
        Ok(lease)
    }

    /// Lists the leases and programs what changed, as flanneld does on watch events.
    pub(super) fn follow(&mut self, node: &Node, store: &Store) -> Result<()> {
        let leases = store.leases()?;
        for side in &mut self.sides {
            let mut wanted = BTreeMap::new();
            for record in &leases {
                if let Some(peer) = side.parse_peer(node, &record.subnet_key, &record.value)? {
                    wanted.insert(record.subnet_key.clone(), peer);
                }
            }
            side.follow(node, wanted)?;
        }
        Ok(())
    }
}

impl StockSide {
    fn device(&self) -> String {
        let family = if self.local.is_ipv6() { "-v6" } else { "" };
        format!("flannel{family}.{}", self.cluster.vni)
    }

    fn start(&self, node: &Node) -> Result<()> {
        let (device, local, base) = (self.device(), self.local, self.subnet.network());
        let (vni, port, mtu) = (self.cluster.vni, self.cluster.port, UNDERLAY_MTU - 50);
        if !node.has_interface(&device) {
            let mac = random_mac();
            // The kernel takes as much off the MTU as the outer header of IPv6 needs.
            node.namespace.ip_batch(&format!(
                "link add {device} address {mac} mtu {mtu} type vxlan \
                     id {vni} dev {NODE_INTERFACE} local {local} dstport {port} nolearning\n"
            ))?;
        }
        let host = if local.is_ipv6() { 128 } else { 32 };
        node.namespace.ip_batch(&format!(
            "link set {device} up\naddr replace {base}/{host} dev {device}\n"
        ))
    }

    fn follow(&mut self, node: &Node, wanted: BTreeMap<String, StockPeer>) -> Result<()> {
        let gone: Vec<_> = self
            .peers
            .extract_if(.., |key, peer| wanted.get(key) != Some(peer))
            .collect();
        for (_, peer) in gone {
            self.remove(node, &peer)?;
        }
        for (key, peer) in wanted {
            if !self.peers.contains_key(&key) {
                self.add(node, &peer)?;
                self.peers.insert(key, peer);
            }
        }
        Ok(())
    }

    fn parse_peer(&self, node: &Node, key: &str, value: &str) -> Result<Option<StockPeer>> {
        let ipv6 = self.local.is_ipv6();
        let subnets = Subnets::parse(&key.replace('-', "/"))?;
        let subnet = if ipv6 { subnets.ipv6 } else { subnets.ipv4 };
        let value: Value = serde_json::from_str(value)?;
        let Some(subnet) = subnet.filter(|subnet| *subnet != self.subnet) else {
            return Ok(None);
        };
        if value["BackendType"] != "vxlan" {
            return Ok(None);
        }
        let (address, data) = if ipv6 {
            ("PublicIPv6", "BackendV6Data")
        } else {
            ("PublicIP", "BackendData")
        };
        let text = |field: &Value| field.as_str().map(str::to_owned);
        let public_ip = text(&value[address]).with_context(|| format!("no {address}"))?;
        let vtep_mac = text(&value[data]["VtepMAC"]).with_context(|| format!("no {data}"))?;
        let direct = self.cluster.direct_routing && {
            let route = node.namespace.run("ip", ["route", "get", &public_ip])?;
            !route.contains(" via ")
        };
        Ok(Some(StockPeer {
            subnet,
            public_ip,
            vtep_mac,
            direct,
        }))
    }

    fn add(&self, node: &Node, peer: &StockPeer) -> Result<()> {
        let StockPeer {
            subnet,
            public_ip,
            vtep_mac,
            direct,
        } = peer;
        if *direct {
            return node
                .namespace
                .ip_batch(&format!("route replace {subnet} via {public_ip}\n"));
        }
        let (device, base) = (self.device(), subnet.network());
        node.namespace.ip_batch(&format!(
            "neigh replace {base} dev {device} lladdr {vtep_mac} nud permanent\n"
        ))?;
        let entry = format!("fdb replace {vtep_mac} dev {device} self dst {public_ip} permanent");
        node.namespace.run("bridge", entry.split(' '))?;
        node.namespace.ip_batch(&format!(
            "route replace {subnet} via {base} dev {device} onlink\n"
        ))
    }

    fn remove(&self, node: &Node, peer: &StockPeer) -> Result<()> {
        let StockPeer {
            subnet,
            public_ip,
            vtep_mac,
            direct,
        } = peer;
        if *direct {
            return node
                .namespace
                .ip_batch(&format!("route delete {subnet} via {public_ip}\n"));
        }
        let (device, base) = (self.device(), subnet.network());
        let entry = format!("fdb delete {vtep_mac} dev {device} self dst {public_ip}");
        node.namespace.run("bridge", entry.split(' '))?;
        node.namespace.ip_batch(&format!(
            "route delete {subnet}\nneigh delete {base} dev {device}\n"
        ))
    }
}

fn subnet_env(cluster: &Cluster, subnets: Subnets) -> Result<String> {
    let mut text = String::new();
    let families = [
        ("FLANNEL", cluster.network, subnets.ipv4),
        ("FLANNEL_IPV6", cluster.network6, subnets.ipv6),
    ];
    for (prefix, network, subnet) in families {
        let Some(subnet) = subnet else { continue };
        let network = network.with_context(|| format!("no network for {subnet}"))?;
        let gateway: IpAddr = match subnet.network() {
            IpAddr::V4(base) => std::net::Ipv4Addr::from_bits(base.to_bits() + 1).into(),
            IpAddr::V6(base) => std::net::Ipv6Addr::from_bits(base.to_bits() + 1).into(),
        };
        writeln!(text, "{prefix}_NETWORK={network}")?;
        writeln!(text, "{prefix}_SUBNET={gateway}/{}", subnet.prefix())?;
    }
    ensure!(!text.is_empty(), "a node without a subnet");
    // Flannel takes the overhead of IPv4 for both families.
    let mtu = UNDERLAY_MTU - 50;
    Ok(format!("{text}FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"))
}
