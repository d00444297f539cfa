//! A place for pins that goes with the test, the agent's datapath in it, and what a person sees of it.

use std::{collections::BTreeMap, path::Path, process::Command, thread};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use ipnetwork::Ipv4Network;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use overlay_agent::{
    backend::{Kind as _, Vxlan},
    datapath::{
        Attachment, Datapath, DatapathError, Fastpath, HostFacts, Maps, Options, PermitTimes,
        PinDir, Serves, Summary, XdpMode,
    },
    model::{Desired, LocalNode, Underlay, V4, VxlanEnd},
    object::OBJECT,
};
use overlay_common::{
    addr::MacAddr, config::TUNNEL_VXLAN, node::Node, outcome::Hook, route::RouteEntry,
};
use overlay_tests::private_netns::run;
use tracing::level_filters::LevelFilter;

pub const FACTS: HostFacts = HostFacts {
    ttl: 64,
    local_port_range: (32_768, 60_999),
    route_mtus: BTreeMap::new(),
    permits: PermitTimes::LONGEST,
    sums: true,
};

/// Runs `body` in a network and mount namespace of its own, with a BPF file system that goes with
/// them, whatever happens.
pub fn sandbox(body: impl FnOnce(&Path) + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("namespaces (needs root)");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let dir = tempfile::tempdir().expect("a directory");
        mount(
            Some("bpf"),
            dir.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("bpffs");
        run("ip link set lo up");
        body(&dir.path().join("overlay"));
        // A child of another test may hold a descriptor until it executes its program.
        umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmount bpffs");
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn open(pin_dir: &Path) -> Datapath {
    try_open(pin_dir, OBJECT).expect("the programs load")
}

pub fn try_open(pin_dir: &Path, object: &[u8]) -> Result<Datapath, DatapathError> {
    Datapath::open(&options(pin_dir, object))
}

pub fn pinned(pin_dir: &Path) -> Maps {
    Maps::open(&PinDir::new(pin_dir)).expect("the pinned maps")
}

/// Of IPv4 flows that count.
pub fn generation(pin_dir: &Path) -> u32 {
    let config = pinned(pin_dir).overlays.ipv4.config();
    config.expect("config").generation
}

pub fn options<'a>(pin_dir: &Path, object: &'a [u8]) -> Options<'a> {
    Options {
        pin_dir: pin_dir.to_owned(),
        object,
        log: LevelFilter::OFF,
        max_flows: 4_096,
        serves: Serves {
            ipv4: true,
            ipv6: false,
        },
        fastpath: Fastpath::Strict,
        slow_mark: None,
        tunnel: TUNNEL_VXLAN,
    }
}

/// The error of an attempt that must fail.
pub fn refusal(result: Result<Datapath, DatapathError>) -> DatapathError {
    match result {
        Ok(_) => panic!("opened although it must be refused"),
        Err(error) => error,
    }
}

pub fn subnet(third: u8) -> Ipv4Network {
    Ipv4Network::new([10, 1, third, 0].into(), 24).expect("a prefix")
}

/// Peers as third octet of the subnet and last octet of the address.
pub fn desired(peers: &[(u8, u8)]) -> Desired {
    let peer = |&(third, last): &(u8, u8)| {
        let end = VxlanEnd::new(MacAddr::new([2, 0, 0, 0, 0, last]));
        let peer = Vxlan::peer_at::<V4>(subnet(third), [192, 168, 0, last].into(), end);
        (subnet(third), peer)
    };
    Desired {
        local: LocalNode {
            network: "10.1.0.0/16".parse().expect("a network"),
            subnet: subnet(200),
            underlay: Underlay {
                ifindex: 2,
                name: "eth0".into(),
                mtu: 1500,
                hardware: false,
                ethernet: true,
                address: [192, 168, 0, 200].into(),
                public_ip: [192, 168, 0, 200].into(),
            },
            forwarding: Vxlan::DEFAULT.forwarding::<V4>(),
            device: None,
            vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 200]),
            lease_data: None,
        },
        peers: peers.iter().map(peer).collect(),
    }
}

pub fn apply(datapath: &mut Datapath, peers: &[(u8, u8)]) -> Summary {
    datapath
        .apply(&desired(peers), None, &FACTS)
        .expect("the maps take it")
}

/// What a person sees in the maps: subnet to node index and VTEP address.
pub fn routed(maps: &Maps) -> BTreeMap<Ipv4Network, (u32, [u8; 4])> {
    let nodes = maps.overlays.ipv4.nodes().expect("nodes");
    let routes = maps.overlays.ipv4.routes().expect("routes");
    let entry = |(subnet, route): (Ipv4Network, RouteEntry)| {
        let node: &Node = &nodes[&route.node];
        (subnet, (route.node, node.vtep.octets))
    };
    routes.into_iter().map(entry).collect()
}

pub fn output(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .expect("it starts");
    String::from_utf8(output.stdout).expect("UTF-8")
}

pub fn veth(name: &str) -> Attachment {
    run(&format!(
        "ip link add {name} type veth peer name {name}-peer"
    ));
    run(&format!("ip link set {name} up"));
    at(Hook::Egress, name)
}

pub fn at(hook: Hook, ifname: &str) -> Attachment {
    Attachment {
        hook,
        ifindex: if_nametoindex(ifname).expect("the interface exists"),
        ifname: ifname.to_owned(),
        xdp: XdpMode::default(),
    }
}

/// Numbers of the programs at the receiving side of an interface.
pub fn programs_at(ifname: &str) -> Vec<u32> {
    let (_, programs) =
        SchedClassifier::query_tcx(ifname, TcAttachType::Ingress).expect("a tcx query");
    programs.iter().map(ProgramInfo::id).collect()
}

pub fn packets_at(maps: &Maps, hook: Hook) -> u64 {
    let counters = maps.counters().expect("counters");
    counters
        .iter()
        .filter(|(at, ..)| *at == hook)
        .map(|(.., counter)| counter.packets)
        .sum()
}
