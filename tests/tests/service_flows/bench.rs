//! A lab with services of an address family, and the servers behind them.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use overlay_tests::{
    differ::{self, Mode},
    lab::{Lab, Node, family::LabFamily},
    rules::{Flavour, NodePort, Protocol, Service, install},
    services::{Connection, Server},
    traffic::Endpoint,
    wait::wait_for,
};
use serde_json::Value;

pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Port every pod serves on.
pub const PORT: u16 = 8080;
/// Bytes and size of writes of an exchange that earns permits, if the flow can have any.
pub const SMALL: (usize, usize) = (6_000, 100);

/// Node port of the last service, which keeps the source: pods that come by it are not masqueraded.
pub const KEPT_PORT: u16 = 30082;

/// A lab with services, and the servers behind them.
pub struct Bench<'a, A> {
    pub lab: &'a Lab,
    pub flavour: Flavour,
    pub mode: Mode,
    pods: Vec<ServicePod<A>>,
    _servers: Vec<Server>,
}

/// A pod, which serves.
struct ServicePod<A> {
    /// Index of its node.
    node: usize,
    name: char,
    endpoint: Endpoint<A>,
}

/// Services of an address family.
pub trait Services: LabFamily {
    /// The network of pods, and that of cluster addresses.
    const PODS: &str;
    const SERVICES: &str;
    /// The family in nft.
    const NFT: &str;
    /// An address that nobody has.
    const NOBODY: &str;

    fn virtual_address(host: u8) -> Self;
    /// Address of the pods' gateway, and of the VTEP.
    fn gateway_and_vtep(node: &Node) -> Result<[Self; 2]>;
}

/// Waits until a node knows all translations there are.
pub fn wait_trusted(node: &Node) -> Result<()> {
    wait_for("trusted mode", Duration::from_secs(10), || {
        let status = node.operator_json(&["status"])?;
        let datapath = &status["datapath"];
        for mode in [&datapath["fastpath"], &datapath["ipv6"]["fastpath"]] {
            ensure!(mode != "learning", "{mode}");
        }
        Ok(())
    })
}

/// Where a service is reached.
pub fn service<A: Services>(host: u8) -> SocketAddr {
    SocketAddr::new(A::virtual_address(host).into(), 80)
}

/// Runs `test` on a bench with the fast path and on one without; what it returned on each.
pub fn in_both_modes<A: Services, T: Send>(
    flavour: Flavour,
    test: impl Fn(&Bench<'_, A>) -> Result<T> + Sync,
) -> [T; 2] {
    let nodes = Lab::builder().nodes(2).config(A::CONFIG);
    differ::in_both_modes(&nodes, &["--ip-masq"], |lab, mode| {
        test(&Bench::start(lab, flavour, mode)?)
    })
}

impl<'a, A: Services> Bench<'a, A> {
    pub fn start(lab: &'a Lab, flavour: Flavour, mode: Mode) -> Result<Self> {
        let places = [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b')];
        let pods = A::add_pods(lab, &['a', 'b'])?.into_iter().zip(places);
        let pods: Vec<_> = pods
            .map(|(endpoint, (node, name))| ServicePod {
                node,
                name,
                endpoint,
            })
            .collect();
        let mut servers = Vec::new();
        for pod in &pods {
            // As the CNI plugin has it with `hairpinMode`: a pod may get its own packets back.
            let veth = format!("veth{}", pod.name);
            let hairpin = ["link", "set", "dev", &veth, "hairpin", "on"];
            lab.node(pod.node).cmd("bridge", hairpin)?;
            for protocol in PROTOCOLS {
                servers.push(Server::start(&pod.endpoint, protocol, PORT)?);
            }
        }
        // The host outside sends cluster addresses to the first node.
        let first = A::host(lab.node(0)).address.to_string();
        let outside = A::outside(lab).namespace;
        outside.run("ip", ["route", "add", A::SERVICES, "via", &first])?;
        let bench = Self {
            lab,
            flavour,
            mode,
            pods,
            _servers: servers,
        };
        bench.install(&[])?;
        if mode == Mode::Trusted {
            lab.nodes().iter().try_for_each(wait_trusted)?;
        }
        Ok(bench)
    }

    /// Installs the rules on every node, those of `further` services after the usual ones.
    pub fn install(&self, further: &[Service]) -> Result<()> {
        let services = [self.services(), further.to_vec()].concat();
        for node in self.lab.nodes() {
            install(node, self.flavour, A::PODS.parse()?, &services)?;
        }
        Ok(())
    }

    pub fn pod(&self, node: usize, name: char) -> Endpoint<A> {
        let mut pods = self.pods.iter();
        let pod = pods.find(|pod| (pod.node, pod.name) == (node, name));
        pod.expect("a pod of this lab").endpoint.clone()
    }

    pub fn backend(&self, node: usize, name: char) -> SocketAddr {
        SocketAddr::new(self.pod(node, name).address.into(), PORT)
    }

    /// A port of the first node.
    pub fn node_port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(A::host(self.node(0)).address.into(), port)
    }

    fn services(&self) -> Vec<Service> {
        let (near, far) = (self.backend(0, 'b'), self.backend(1, 'b'));
        let own = self.backend(0, 'a');
        let mut services = Vec::new();
        for protocol in PROTOCOLS {
            let mut add = |host, names: [&'static str; 2], backends: &[_], node_port| {
                services.push(Service {
                    name: names[usize::from(protocol == Protocol::Udp)],
                    protocol,
                    address: service::<A>(host),
                    node_port,
                    affinity: (backends.len() > 1).then_some(10_800),
                    backends: backends.to_vec(),
                });
            };
            let (masqueraded, kept) = (NodePort::Masqueraded(30080), NodePort::SourceKept(30081));
            let kept_far = NodePort::SourceKept(KEPT_PORT);
            add(FAR, ["FAR-T", "FAR-U"], &[far], Some(masqueraded));
            add(NEAR, ["NEAR-T", "NEAR-U"], &[near], Some(kept));
            add(BOTH, ["BOTH-T", "BOTH-U"], &[near, far], None);
            add(OWN, ["OWN-T", "OWN-U"], &[own], None);
            add(KEPT, ["KEPT-T", "KEPT-U"], &[far], Some(kept_far));
        }
        services
    }

    /// What an address is called in every lab.
    fn name(&self, address: IpAddr) -> Result<String> {
        let is = |other: A| other.into() == address;
        if is(A::outside(self.lab).address) {
            return Ok("outside".to_owned());
        }
        let pod = self.pods.iter().find(|pod| is(pod.endpoint.address));
        if let Some(pod) = pod {
            return Ok(format!("{}/{}", self.node(pod.node).name, pod.name));
        }
        for node in self.lab.nodes() {
            let [gateway, vtep] = A::gateway_and_vtep(node)?;
            let name = &node.name;
            if is(A::host(node).address) {
                return Ok(name.clone());
            } else if is(gateway) {
                return Ok(format!("gateway of {name}"));
            } else if is(vtep) {
                return Ok(format!("VTEP of {name}"));
            }
        }
        Ok(address.to_string())
    }

    /// Opens a connection, exchanges data on it, closes it, and says who saw whom.
    pub fn visit(
        &self,
        client: &Endpoint<A>,
        protocol: Protocol,
        target: SocketAddr,
    ) -> Result<(String, String)> {
        let mut connection = Connection::open(client, protocol, target, 0)?;
        connection.exchange(SMALL.0, SMALL.1)?;
        if protocol == Protocol::Tcp {
            connection.exchange(400_000, 60_000)?;
        }
        let served = connection.served;
        connection.close()?;
        Ok((self.name(served.by)?, self.name(served.source.ip())?))
    }

    pub fn node(&self, index: usize) -> &Node {
        self.lab.node(index)
    }

    /// Packets that took the fast path at a node, out of pods and into them.
    fn fast_packets(&self, node: usize) -> Result<(u64, u64)> {
        let stats = self.node(node).operator_json(&["stats"])?;
        let count = |direction: &str| -> Result<u64> {
            let count: &Value = &stats["fast_path"][direction]["fast_packets"];
            count
                .as_u64()
                .with_context(|| format!("no count in {stats}"))
        };
        Ok((count("egress")?, count("ingress")?))
    }

    /// What `action` added to the fast packets of each node.
    pub fn fast_packets_of(&self, action: impl FnOnce() -> Result<()>) -> Result<[(u64, u64); 2]> {
        let before = [self.fast_packets(0)?, self.fast_packets(1)?];
        action()?;
        let after = [self.fast_packets(0)?, self.fast_packets(1)?];
        Ok([0, 1].map(|node| {
            (
                after[node].0 - before[node].0,
                after[node].1 - before[node].1,
            )
        }))
    }
}

// Last numbers of the virtual addresses: a backend on the first node, one on the second, one on
// each, the client itself, and one on the second again.
pub const NEAR: u8 = 1;
pub const FAR: u8 = 2;
pub const BOTH: u8 = 3;
pub const OWN: u8 = 4;
pub const KEPT: u8 = 5;
