//! One node in the calling thread's network namespace.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use overlay_agent::{
    backend::{Backend, VtepSpec, Vxlan, marks},
    model::{Desired, Family, LocalNode, Underlay, V4, V6, VxlanEnd},
    netlink::{LinkKind, Netlink, NetlinkError, Summary, Vtep, VxlanLink},
};
use overlay_common::addr::MacAddr;
use overlay_tests::private_netns::run;

pub const MAC: MacAddr = MacAddr::new([0x02, 0, 0, 0, 0, 0x01]);

/// What these tests have to know of a family.
pub trait Side: Family {
    /// How `ip` is told of it.
    const IP: &str;
    /// The underlay's address, as `ip` adds it.
    const UNDERLAY: &str;
    const ROUTER: &str;
    /// The subnet of node `n`, the first of whom is this one.
    fn subnet(n: u16) -> Self::Network;
    /// The pod network: for IPv4 of the first 256 nodes.
    fn network() -> Self::Network;
    /// The address of a node behind the router.
    fn far(n: u16) -> Self::Address;
}

impl Side for V4 {
    const IP: &str = "-4";
    const UNDERLAY: &str = "192.168.0.1/24";
    const ROUTER: &str = "192.168.0.254";

    fn subnet(n: u16) -> Ipv4Network {
        let [high, low] = n.to_be_bytes();
        Ipv4Network::new(Ipv4Addr::new(10, 5 + high, low, 0), 24).expect("subnet")
    }

    fn network() -> Ipv4Network {
        net("10.5.0.0/16")
    }

    fn far(n: u16) -> Ipv4Addr {
        let [high, low] = n.to_be_bytes();
        Ipv4Addr::new(203, 0, high, low)
    }
}

impl Side for V6 {
    const IP: &str = "-6";
    const UNDERLAY: &str = "fd00:192::1/64 nodad";
    const ROUTER: &str = "fd00:192::fe";

    fn subnet(n: u16) -> Ipv6Network {
        Ipv6Network::new(Ipv6Addr::new(0xfd00, 0x10, 5, n, 0, 0, 0, 0), 64).expect("subnet")
    }

    fn network() -> Ipv6Network {
        "fd00:10:5::/48".parse().expect("network")
    }

    fn far(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, n)
    }
}

/// One node: an underlay with an address and a default route, and the desired state.
pub struct NodeOf<F: Side> {
    pub netlink: Netlink,
    backend: Backend,
    pub desired: Desired<F>,
}

pub type Node = NodeOf<V4>;

impl<F: Side> NodeOf<F> {
    pub fn new(backend: impl Into<Backend>) -> Self {
        let backend = backend.into();
        let (ip, address, router) = (F::IP, F::UNDERLAY, F::ROUTER);
        run("ip link add eth0 type veth peer name wire0");
        run(&format!("ip addr add dev eth0 {address}"));
        run("ip link set wire0 up");
        run("ip link set eth0 up");
        run(&format!("ip {ip} route add default via {router}"));
        let (network, subnet) = (F::network(), F::subnet(1));
        let local = LocalNode {
            network,
            subnet,
            underlay: underlay::<F>(),
            forwarding: backend.forwarding::<F>(),
            device: backend.own_device(network, subnet),
            vtep_mac: MAC,
            lease_data: None,
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
        let local = &mut self.desired.local;
        local.forwarding = self.backend.forwarding::<F>();
        local.device = self.backend.own_device(local.network, local.subnet);
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

    /// Has the kernel tier be as desired, as far as the kernel lets it.
    pub async fn try_reconcile(&self, vtep: Option<&Vtep>) -> Result<Summary<F>, NetlinkError> {
        let netlink = &self.netlink;
        netlink
            .reconcile(&self.desired, vtep, marks(&Backend::from(Vxlan::DEFAULT)))
            .await
    }

    pub async fn reconcile(&self, vtep: &Vtep) -> Summary<F> {
        let summary = self.try_reconcile(Some(vtep)).await.expect("reconcile");
        assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
        summary
    }

    /// Adds peer `n` at an address.
    pub fn add_peer(&mut self, n: u16, public_ip: &str) {
        let public_ip = public_ip.parse().ok().and_then(F::address);
        self.add_peer_at(n, public_ip.expect("address"));
    }

    /// Adds peer `n` behind the router.
    pub fn add_far_peer(&mut self, n: u16) {
        self.add_peer_at(n, F::far(n));
    }

    fn add_peer_at(&mut self, n: u16, public_ip: F::Address) {
        let [high, low] = n.to_be_bytes();
        let mac = MacAddr::new([0x02, 0, 0, 0, 1 + high, low]);
        self.add(F::subnet(n), public_ip, mac);
    }

    /// Adds a peer.
    pub fn add(&mut self, subnet: F::Network, public_ip: F::Address, mac: MacAddr) {
        let peer = Vxlan::peer_at(subnet, public_ip, VxlanEnd::new(mac));
        self.desired.peers.insert(subnet, peer);
    }
}

/// The attributes of a vxlan device.
pub fn vxlan(vtep: &Vtep) -> VxlanLink {
    match vtep.kind {
        LinkKind::Vxlan(vxlan) => vxlan,
        _ => panic!("no vxlan device: {vtep:?}"),
    }
}

pub fn net(text: &str) -> Ipv4Network {
    text.parse().expect("network")
}

pub fn underlay<F: Side>() -> Underlay<F> {
    let address = F::UNDERLAY.split_whitespace().next();
    let network: IpNetwork = address.and_then(|text| text.parse().ok()).expect("CIDR");
    let address = F::address(network.ip()).expect("address of the family");
    Underlay {
        ifindex: index_of("eth0"),
        name: "eth0".to_owned(),
        mtu: 1500,
        hardware: false,
        ethernet: true,
        address,
        public_ip: address,
    }
}

/// Nothing had to be done and nothing is amiss.
pub fn is_unchanged<F: Family>(summary: &Summary<F>) -> bool {
    summary.changed.is_empty() && summary.failed.is_empty()
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
