//! One node in the calling thread's network namespace.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use overlay_agent::{
    backend::{Backend, Vxlan},
    model::{Desired, Family, LocalNode, Peer, Underlay, V4},
    netlink::{Netlink, Summary, Vtep, VtepSpec},
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::run;

pub const MAC: MacAddr = MacAddr::new([0x02, 0, 0, 0, 0, 0x01]);

/// One node: an underlay with an address and a default route, and the desired state.
pub struct Node {
    pub netlink: Netlink,
    backend: Backend,
    pub desired: Desired,
}

impl Node {
    pub fn new(backend: impl Into<Backend>) -> Self {
        let backend = backend.into();
        run("ip link add eth0 type veth peer name wire0");
        run("ip addr add 192.168.0.1/24 dev eth0");
        run("ip link set wire0 up");
        run("ip link set eth0 up");
        run("ip route add default via 192.168.0.254");
        let local = LocalNode {
            network: net("10.5.0.0/16"),
            subnet: net("10.5.1.0/24"),
            underlay: underlay(),
            forwarding: backend.forwarding::<V4>(),
            vtep_mac: MAC,
            zero_checksum: false,
        };
        let netlink = Netlink::connect().expect("netlink");
        Self {
            netlink,
            backend,
            desired: Desired {
                local,
                peers: BTreeMap::new(),
            },
        }
    }

    pub fn vxlan() -> Self {
        Self::new(Vxlan::DEFAULT)
    }

    pub fn set_backend(&mut self, backend: impl Into<Backend>) {
        self.backend = backend.into();
        self.desired.local.forwarding = self.backend.forwarding::<V4>();
    }

    pub fn spec(&self) -> VtepSpec {
        match &self.backend {
            Backend::Vxlan(vxlan) => vxlan.device(&self.desired.local.underlay),
            _ => panic!("no vxlan backend"),
        }
    }

    pub async fn ensure(&self) -> Vtep {
        self.netlink
            .ensure_vtep(&self.spec(), Some(MAC))
            .await
            .expect("device")
    }

    pub async fn reconcile(&self, vtep: &Vtep) -> Summary {
        let summary = self
            .netlink
            .reconcile(&self.desired, Some(vtep))
            .await
            .expect("reconcile");
        assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
        summary
    }

    /// Adds peer `10.5.<n>.0/24` at an address.
    pub fn add_peer(&mut self, n: u8, public_ip: &str) {
        let subnet = Ipv4Network::new(Ipv4Addr::new(10, 5, n, 0), 24).expect("subnet");
        self.desired.peers.insert(
            subnet,
            Peer {
                subnet,
                public_ip: public_ip.parse().expect("address"),
                vtep_mac: MacAddr::new([0x02, 0, 0, 0, 1, n]),
                zero_checksum: false,
            },
        );
    }
}

pub fn net(text: &str) -> Ipv4Network {
    text.parse().expect("network")
}

pub fn underlay() -> Underlay {
    Underlay {
        ifindex: index_of("eth0"),
        name: "eth0".to_owned(),
        mtu: 1500,
        hardware: false,
        ethernet: true,
        address: Ipv4Addr::new(192, 168, 0, 1),
        public_ip: Ipv4Addr::new(192, 168, 0, 1),
    }
}

/// Nothing had to be done and nothing is amiss.
pub fn is_unchanged<F: Family>(summary: &Summary<F>) -> bool {
    summary.added == 0 && summary.removed == 0 && summary.failed.is_empty()
}

/// Index of a link.
pub fn index_of(name: &str) -> u32 {
    let text = run(&format!("ip -o link show {name}"));
    text.split(':')
        .next()
        .and_then(|index| index.trim().parse().ok())
        .expect("an index")
}

pub fn lines_with(text: &str, needle: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.contains(needle))
        .map(|line| line.trim().to_owned())
        .collect()
}

pub fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort_unstable();
    lines
}

/// `ip -d link` without the index, which differs between devices.
pub fn described(name: &str) -> String {
    let text = run(&format!("ip -d link show {name}"));
    text.split_once(':')
        .map(|(_, rest)| rest.to_owned())
        .expect("a description")
}
