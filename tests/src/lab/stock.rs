//! A kernel-only stand-in for a node that runs stock flanneld with the vxlan backend: the same
//! device settings, the same kernel objects, the same lease record. It follows the other leases
//! when it is told to.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use serde_json::Value;

use super::{
    node::Node,
    random_mac,
    store::Store,
    subnet_env::SubnetEnv,
    underlay::{NODE_INTERFACE, UNDERLAY_MTU},
};

/// The cluster's settings as flannel reads them from the config, defaults filled in.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub network: Ipv4Network,
    pub vni: u64,
    /// 0 leaves the choice to the kernel: 8472.
    pub port: u64,
    pub direct_routing: bool,
}

/// The stand-in's state: what flanneld keeps in memory.
#[derive(Debug)]
pub struct Stock {
    cluster: Cluster,
    subnet: Ipv4Network,
    peers: BTreeMap<String, StockPeer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StockPeer {
    subnet: Ipv4Network,
    public_ip: String,
    vtep_mac: String,
    direct: bool,
}

impl Cluster {
    pub fn parse(config: &str) -> Result<Self> {
        let config: Value = serde_json::from_str(config).context("network config")?;
        let backend = &config["Backend"];
        Ok(Self {
            network: config["Network"]
                .as_str()
                .context("config without Network")?
                .parse()?,
            vni: backend["VNI"].as_u64().unwrap_or(1),
            port: backend["Port"].as_u64().unwrap_or(0),
            direct_routing: backend["DirectRouting"].as_bool().unwrap_or(false),
        })
    }

    pub fn device(&self) -> String {
        format!("flannel.{}", self.vni)
    }
}

impl Stock {
    /// Does what flanneld does at start: device, lease, address, `subnet.env`. A device that is
    /// there is adopted with its MAC address.
    pub(super) fn start(
        node: &Node,
        store: &Store,
        cluster: Cluster,
        subnet: Ipv4Network,
    ) -> Result<Self> {
        let (device, local, base) = (cluster.device(), node.address, subnet.network());
        let (vni, port, mtu) = (cluster.vni, cluster.port, UNDERLAY_MTU - 50);
        if !node.has_interface(&device) {
            let mac = random_mac();
            node.namespace.ip_batch(&format!(
                "link add {device} address {mac} mtu {mtu} type vxlan \
                     id {vni} dev {NODE_INTERFACE} local {local} dstport {port} nolearning\n"
            ))?;
        }
        node.namespace.ip_batch(&format!(
            "addr replace {base}/32 dev {device}\nlink set {device} up\n"
        ))?;
        let vtep_mac = node.mac(&device)?;
        let lease = format!(
            r#"{{"PublicIP":"{local}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"{vtep_mac}"}}}}"#
        );
        store.put_lease(&format!("{base}-{}", subnet.prefix()), &lease)?;
        let gateway = Ipv4Network::new((base.to_bits() + 1).into(), subnet.prefix())?;
        let env = SubnetEnv {
            network: cluster.network,
            gateway,
            mtu,
            ip_masq: false,
        };
        std::fs::write(&node.subnet_file, env.to_text())?;
        Ok(Self {
            cluster,
            subnet,
            peers: BTreeMap::new(),
        })
    }

    /// Lists the leases and programs what changed, as flanneld does on watch events.
    pub(super) fn follow(&mut self, node: &Node, store: &Store) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for record in store.leases()? {
            if let Some(peer) = self.parse_peer(node, &record.subnet_key, &record.value)? {
                wanted.insert(record.subnet_key, peer);
            }
        }
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
        let subnet: Ipv4Network = key.replace('-', "/").parse()?;
        let value: Value = serde_json::from_str(value)?;
        if subnet == self.subnet || value["BackendType"] != "vxlan" {
            return Ok(None);
        }
        let text = |field: &Value| field.as_str().map(str::to_owned);
        let public_ip = text(&value["PublicIP"]).context("lease without PublicIP")?;
        let vtep_mac = text(&value["BackendData"]["VtepMAC"]).context("lease without VtepMAC")?;
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
        let (device, base) = (self.cluster.device(), subnet.network());
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
        let (device, base) = (self.cluster.device(), subnet.network());
        let entry = format!("fdb delete {vtep_mac} dev {device} self dst {public_ip}");
        node.namespace.run("bridge", entry.split(' '))?;
        node.namespace.ip_batch(&format!(
            "route delete {subnet}\nneigh delete {base} dev {device}\n"
        ))
    }
}
