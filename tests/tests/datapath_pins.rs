//! Pins over the life of an agent: taken over after a crash, switched without a gap, cleaned up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::{ProgramInfo, SchedClassifier, TcAttachType},
};
use ipnetwork::Ipv4Network;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use object::{Object as _, ObjectSection as _};
use overlay_agent::{
    backend::{Kind as _, Vxlan},
    datapath::{
        Attachment, Datapath, DatapathError, Fastpath, Flusher, HostFacts, LeaseTimes, Maps,
        Options, PinDir, Serves, Summary, XdpMode, link_states,
    },
    model::{Desired, LocalNode, Peer, Underlay, V4},
    object::OBJECT,
};
use overlay_common::{
    addr::{Ipv4Be, MacAddr},
    flow::{Flow, FlowKey4},
    maps,
    node::Node,
    outcome::Hook,
    route::Route,
};
use overlay_tests::{
    private_netns::run,
    seccomp::{BpfDenial, deny_bpf_here},
};
use tracing::level_filters::LevelFilter;

const FACTS: HostFacts = HostFacts {
    ttl: 64,
    local_port_range: (32_768, 60_999),
    route_mtus: BTreeMap::new(),
    leases: LeaseTimes::LONGEST,
};

/// Runs `body` in a network and mount namespace of its own, with a BPF file system that goes with
/// them, whatever happens.
fn sandbox(body: impl FnOnce(&Path) + Send + 'static) {
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

fn open(pin_dir: &Path) -> Datapath {
    try_open(pin_dir, OBJECT).expect("the programs load")
}

fn try_open(pin_dir: &Path, object: &[u8]) -> Result<Datapath, DatapathError> {
    Datapath::open(&options(pin_dir, object))
}

fn pinned(pin_dir: &Path) -> Maps {
    Maps::open(&PinDir::new(pin_dir)).expect("the pinned maps")
}

fn options<'a>(pin_dir: &Path, object: &'a [u8]) -> Options<'a> {
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
    }
}

/// The error of an attempt that must fail.
fn refusal(result: Result<Datapath, DatapathError>) -> DatapathError {
    match result {
        Ok(_) => panic!("opened although it must be refused"),
        Err(error) => error,
    }
}

fn subnet(third: u8) -> Ipv4Network {
    Ipv4Network::new([10, 1, third, 0].into(), 24).expect("a prefix")
}

/// Peers as third octet of the subnet and last octet of the address.
fn desired(peers: &[(u8, u8)]) -> Desired {
    let peer = |&(third, last): &(u8, u8)| {
        let peer = Peer {
            subnet: subnet(third),
            public_ip: [192, 168, 0, last].into(),
            vtep_mac: MacAddr::new([2, 0, 0, 0, 0, last]),
            zero_checksum: false,
        };
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
            vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 200]),
            zero_checksum: false,
        },
        peers: peers.iter().map(peer).collect(),
    }
}

fn apply(datapath: &mut Datapath, peers: &[(u8, u8)]) -> Summary {
    datapath
        .apply(&desired(peers), None, &FACTS)
        .expect("the maps take it")
}

/// What a person sees in the maps: subnet to node index and VTEP address.
fn routed(maps: &Maps) -> BTreeMap<Ipv4Network, (u32, [u8; 4])> {
    let nodes = maps.ipv4.nodes().expect("nodes");
    let routes = maps.ipv4.routes().expect("routes");
    let entry = |(subnet, route): (Ipv4Network, Route)| {
        let node: &Node = &nodes[&route.node];
        (subnet, (route.node, node.vtep.octets))
    };
    routes.into_iter().map(entry).collect()
}

fn output(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .expect("it starts");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn veth(name: &str) -> Attachment {
    run(&format!(
        "ip link add {name} type veth peer name {name}-peer"
    ));
    run(&format!("ip link set {name} up"));
    at(Hook::Egress, name)
}

fn at(hook: Hook, ifname: &str) -> Attachment {
    Attachment {
        hook,
        ifindex: if_nametoindex(ifname).expect("the interface exists"),
        ifname: ifname.to_owned(),
        xdp: XdpMode::default(),
    }
}

/// Numbers of the programs at the receiving side of an interface.
fn programs_at(ifname: &str) -> Vec<u32> {
    let (_, programs) =
        SchedClassifier::query_tcx(ifname, TcAttachType::Ingress).expect("a tcx query");
    programs.iter().map(ProgramInfo::id).collect()
}

fn packets_at(maps: &Maps, hook: Hook) -> u64 {
    let counters = maps.counters().expect("counters");
    counters
        .iter()
        .filter(|(at, ..)| *at == hook)
        .map(|(.., counter)| counter.packets)
        .sum()
}

#[test]
fn a_restarted_agent_takes_over_the_maps() {
    sandbox(|pins| {
        let mut first = open(pins);
        apply(&mut first, &[(1, 1), (2, 2), (3, 3)]);
        apply(&mut first, &[(2, 2), (3, 3)]);
        let before = (
            routed(&pinned(pins)),
            pinned(pins).ipv4.config().expect("config"),
        );
        drop(first);

        let mut second = open(pins);
        let adopted = pinned(pins).ipv4.config().expect("config");
        assert_eq!(
            routed(&pinned(pins)),
            before.0,
            "forwarding state is as the first agent left it"
        );
        assert_eq!(adopted.stamp_key, before.1.stamp_key);
        assert_ne!(adopted.stamp_key, [0; 2], "the key is a secret");
        assert_eq!(
            adopted.generation,
            before.1.generation + 1,
            "flows have to earn their leases"
        );

        let summary = apply(&mut second, &[(2, 2), (3, 3)]);
        assert!(!summary.flushed && summary.added + summary.updated + summary.removed == 0);
        assert_eq!(routed(&pinned(pins)), before.0);
    });
}

#[test]
fn no_packet_meets_an_interface_without_a_program_while_agents_change() {
    sandbox(|pins| {
        let lo = BTreeSet::from([at(Hook::Ingress, "lo")]);
        let mut agent = open(pins);
        assert_eq!(agent.sync_links(&lo).created, 1);
        let counted = packets_at(&pinned(pins), Hook::Ingress);

        let done = AtomicBool::new(false);
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        sender
            .connect(receiver.local_addr().expect("an address"))
            .expect("connected");
        let mut programs = BTreeSet::from_iter(programs_at("lo"));
        let sent = thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let mut sent = 0u64;
                let mut buffer = [0; 8];
                while !done.load(Ordering::Relaxed) {
                    sender.send(&sent.to_ne_bytes()).expect("sent");
                    receiver.recv(&mut buffer).expect("received");
                    sent += 1;
                }
                sent
            });
            for _ in 0..5 {
                drop(agent);
                agent = open(pins);
                let summary = agent.sync_links(&lo);
                assert_eq!((summary.created, summary.adopted), (0, 1), "{summary:?}");
                assert_eq!(programs_at("lo").len(), 1);
                programs.extend(programs_at("lo"));
            }
            done.store(true, Ordering::Relaxed);
            traffic.join().expect("traffic")
        });
        assert_eq!(programs.len(), 6, "each agent runs its own program");
        assert!(sent > 0);
        let maps = Maps::open(&PinDir::new(pins)).expect("maps");
        assert_eq!(packets_at(&maps, Hook::Ingress) - counted, sent);
    });
}

#[test]
fn links_follow_the_wanted_set_and_defunct_ones_go() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let (a, b) = (veth("pod-a"), veth("pod-b"));
        let both = BTreeSet::from([a.clone(), b.clone()]);
        assert_eq!(agent.sync_links(&both).created, 2);
        let summary = agent.sync_links(&both);
        assert_eq!(
            (summary.created, summary.adopted, summary.removed),
            (0, 0, 0)
        );

        run("ip link del pod-a");
        let states = link_states(&PinDir::new(pins)).expect("links");
        let alive = |ifindex| {
            states
                .iter()
                .any(|link| link.ifindex == ifindex && link.alive)
        };
        assert!(!alive(a.ifindex) && alive(b.ifindex), "{states:?}");

        // Another interface takes over the index.
        run(&format!(
            "ip link add pod-c index {} type veth peer name pod-c-peer",
            a.ifindex
        ));
        let c = at(Hook::Egress, "pod-c");
        assert_eq!(c.ifindex, a.ifindex);
        let summary = agent.sync_links(&BTreeSet::from([c.clone()]));
        assert_eq!((summary.created, summary.removed), (1, 1), "{summary:?}");
        assert_eq!(programs_at("pod-c").len(), 1);
        assert_eq!(programs_at("pod-b"), [0; 0]);

        run("ip link del pod-c");
        let summary = agent.sync_links(&BTreeSet::new());
        assert_eq!(summary.removed, 1, "{summary:?}");
        assert_eq!(link_states(&PinDir::new(pins)).expect("links"), []);
        let summary = agent.sync_links(&BTreeSet::new());
        assert!(
            summary.removed == 0 && summary.left.is_empty(),
            "{summary:?}"
        );
    });
}

#[test]
fn a_pod_that_is_gone_already_does_not_keep_others_from_being_attached() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let alive = veth("alive");
        let gone = Attachment {
            ifindex: 9_999,
            ifname: "gone".into(),
            ..alive.clone()
        };
        let summary = agent.sync_links(&BTreeSet::from([gone.clone(), alive.clone()]));
        assert_eq!(summary.created, 1);
        assert_eq!(summary.gone, [gone]);
        assert!(summary.failed.is_empty());
    });
}

#[test]
fn what_cannot_be_detached_keeps_nothing_from_being_attached() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let (old, new) = (veth("old"), veth("new"));
        assert_eq!(agent.sync_links(&[old.clone()].into()).created, 1);
        // The name of a link, on what no link is.
        let stray = PinDir::new(pins).link(Hook::Egress, 1);
        fs::create_dir(&stray).expect("a stray directory");
        fs::create_dir(stray.join("inside")).expect("a directory that is not empty");

        let summary = agent.sync_links(&[new.clone()].into());
        assert_eq!((summary.created, summary.removed), (1, 1), "{summary:?}");
        let [error] = &summary.left[..] else {
            panic!("{summary:?}");
        };
        let path = stray.display().to_string();
        assert!(error.to_string().contains(&path), "{error}");
        assert_eq!(programs_at("new").len(), 1);
        assert_eq!(programs_at("old"), [0; 0]);
    });
}

#[test]
fn a_flush_waits_for_nobody_and_never_repeats_a_generation() {
    sandbox(|pins| {
        let agent = open(pins);
        let mut flusher = agent.flusher().expect("a flusher");
        let generation = || pinned(pins).ipv4.config().expect("config").generation;
        let before = generation();
        let first = flusher.flush().expect("flushed");
        assert!(first.contested.is_none(), "{first:?}");
        assert_eq!(
            (first.generations.ipv4, generation()),
            (before + 1, before + 1)
        );

        // Somebody was stopped while he had the configuration locked.
        let dir = File::open(PinDir::new(pins).maps()).expect("the directory of the maps");
        dir.lock().expect("locked");
        let start = Instant::now();
        let second = flusher.flush().expect("flushed");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(generation(), before + 2);
        let error = second.contested.expect("the lock is contested").to_string();
        let holder = format!("process {}", std::process::id());
        assert!(error.contains(&holder), "{error}");

        drop(dir);
        let third = flusher.flush().expect("flushed");
        assert!(third.contested.is_none(), "{third:?}");
        assert_eq!(generation(), before + 3);
    });
}

#[test]
fn a_peer_that_moves_keeps_its_node_and_disturbs_no_flow_and_one_that_goes_flushes() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let start = apply(&mut agent, &[(1, 1), (2, 2)]);
        let node = routed(&pinned(pins))[&subnet(1)].0;

        let moved = apply(&mut agent, &[(1, 7), (2, 2)]);
        assert_eq!((moved.updated, moved.flushed), (1, false));
        assert_eq!(routed(&pinned(pins))[&subnet(1)], (node, [192, 168, 0, 7]));
        let entry = pinned(pins).ipv4.nodes().expect("nodes")[&node];
        assert_eq!(entry.encap.ipv4.dst.octets, [192, 168, 0, 7]);
        assert_eq!(entry.encap.inner_eth.dst, MacAddr::new([2, 0, 0, 0, 0, 7]));
        assert_eq!(
            pinned(pins).ipv4.config().expect("config").generation,
            start.generation
        );

        let gone = apply(&mut agent, &[(2, 2)]);
        assert_eq!((gone.removed, gone.flushed), (1, true));
        assert_eq!(gone.generation, start.generation + 1);
        assert_eq!(
            routed(&pinned(pins)).keys().copied().collect::<Vec<_>>(),
            [subnet(2)]
        );
    });
}

#[test]
fn what_someone_else_changed_in_the_maps_is_repaired() {
    sandbox(|pins| {
        let mut agent = open(pins);
        apply(&mut agent, &[(1, 1), (2, 2)]);
        let right = routed(&pinned(pins));
        let mut meddler = Maps::open(&PinDir::new(pins)).expect("maps");
        meddler.ipv4.remove_route(subnet(1)).expect("removed");
        meddler.ipv4.put_route(subnet(77), 2).expect("added");

        agent.distrust_tables();
        apply(&mut agent, &[(1, 1), (2, 2)]);
        assert_eq!(routed(&pinned(pins)), right);
    });
}

#[test]
fn an_operators_flush_counts_while_the_agent_runs() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let before = apply(&mut agent, &[(1, 1), (2, 2)]).generation;
        let dir = PinDir::new(pins);
        let mut flusher = Flusher::open(&dir).expect("a flusher");
        let outcome = flusher.flush().expect("flushed");
        assert_eq!(outcome.generations.ipv4, before + 1);
        assert_eq!(apply(&mut agent, &[(1, 1)]).generation, before + 2);
        assert_eq!(agent.flush().expect("flushed").ipv4, before + 3);
    });
}

#[test]
fn gateways_are_exactly_those_given_and_a_changed_one_flushes() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let generation = || pinned(pins).ipv4.config().expect("config").generation;
        let start = generation();
        let mac = |last| MacAddr::new([6, 0, 0, 0, 0, last]);
        assert!(agent.set_gateways(&[(7, mac(1))].into()).expect("set"));
        assert!(!agent.set_gateways(&[(7, mac(1))].into()).expect("set"));
        assert_eq!(generation(), start, "a gateway more concerns no flow");
        assert!(
            agent
                .set_gateways(&[(7, mac(2)), (8, mac(3))].into())
                .expect("set")
        );
        assert_eq!(generation(), start + 1);
        assert!(agent.set_gateways(&[(8, mac(3))].into()).expect("set"));
        assert_eq!(generation(), start + 2);
        assert_eq!(
            pinned(pins).gateways().expect("gateways"),
            [(8, mac(3))].into()
        );
    });
}

#[test]
fn a_second_agent_on_the_same_directory_is_refused() {
    sandbox(|pins| {
        let first = open(pins);
        let error = refusal(try_open(pins, OBJECT));
        assert!(matches!(error, DatapathError::InUse { .. }), "{error}");
        assert!(PinDir::new(pins).is_in_use().expect("a lock"));
        drop(first);
        assert!(!PinDir::new(pins).is_in_use().expect("a lock"));
        open(pins);
    });
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_with_the_remedy() {
    sandbox(|pins| {
        drop(open(pins));
        let dir = PinDir::new(pins);
        let map = dir.map(maps::NODES);
        std::fs::remove_file(&map).expect("removed");
        let path = map.display();
        run(&format!(
            "bpftool map create {path} type array key 4 value 64 entries 16384 name OVL_NODES"
        ));
        let error = refusal(try_open(pins, OBJECT)).to_string();
        assert!(
            error.contains("value 64 bytes") && error.contains("value 80 bytes"),
            "{error}"
        );
        assert!(
            error.contains(&format!("rm -r {}", dir.maps().display())),
            "{error}"
        );
    });
}

#[test]
fn another_capacity_gives_another_flow_table_and_keeps_the_rest() {
    sandbox(|pins| {
        let mut first = open(pins);
        apply(&mut first, &[(1, 1)]);
        let before = routed(&pinned(pins));
        drop(first);
        let _second = Datapath::open(&Options {
            max_flows: 8_192,
            ..options(pins, OBJECT)
        })
        .expect("opened");
        assert!(pinned(pins).ipv4.max_flows() >= 8_192);
        assert_eq!(routed(&pinned(pins)), before);
    });
}

#[test]
fn every_entry_of_a_large_flow_table_is_read_once() {
    sandbox(|pins| {
        const ENTRIES: u32 = 10_000;
        let _agent = Datapath::open(&Options {
            max_flows: 8 * ENTRIES,
            ..options(pins, OBJECT)
        })
        .expect("opened");
        let data = MapData::from_pin(PinDir::new(pins).map(maps::FLOWS4)).expect("pinned");
        let mut table: HashMap<_, FlowKey4, Flow> =
            Map::LruHashMap(data).try_into().expect("the flow table");
        for number in 0..ENTRIES {
            let key = FlowKey4 {
                local: Ipv4Be {
                    octets: number.to_be_bytes(),
                },
                ..FlowKey4::default()
            };
            let flow = Flow {
                source_port: u16::try_from(number).expect("fits").to_be_bytes(),
                ..Flow::default()
            };
            table.insert(key, flow, 0).expect("room");
        }
        let flows = pinned(pins).ipv4.flows().expect("flows");
        let number = |flow: &Flow| u32::from(u16::from_be_bytes(flow.source_port));
        let numbers: BTreeSet<u32> = flows.iter().map(|(_, flow)| number(flow)).collect();
        assert_eq!(flows.len(), ENTRIES as usize);
        assert_eq!(numbers, (0..ENTRIES).collect());
        assert!(
            flows
                .iter()
                .all(|(key, flow)| key.local.to_u32() == number(flow))
        );
    });
}

/// The object with an `exit` as the first instruction of the sections: nothing behind it can be
/// reached.
fn with_rejected_programs(sections: &[&str]) -> Vec<u8> {
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut object = OBJECT.to_vec();
    let file = object::File::parse(OBJECT).expect("an ELF object");
    for name in sections {
        let section = file.section_by_name(name).expect("programs");
        let (start, _) = section.file_range().expect("bytes");
        let start = usize::try_from(start).expect("an offset");
        object[start..start + EXIT.len()].copy_from_slice(&EXIT);
    }
    object
}

#[test]
fn on_a_kernel_without_tcx_a_guard_that_it_rejects_is_left_out_and_the_rest_is_attached() {
    sandbox(|pins| {
        let object = with_rejected_programs(&["xdp.frags", "xdp"]);
        let error = refusal(try_open(pins, &object));
        assert!(matches!(error, DatapathError::Verifier { .. }), "{error}");

        deny_bpf_here(BpfDenial::Links).expect("a seccomp filter");
        let mut agent = try_open(pins, &object).expect("without its guard");
        let egress = veth("pod");
        let guard = |xdp| Attachment {
            xdp,
            ..at(Hook::Guard, "pod")
        };
        let wanted = [egress.clone(), guard(XdpMode::NativeIfSupported)];
        let summary = agent.sync_links(&wanted.into());
        assert!(summary.failed.is_empty(), "{:?}", summary.failed);
        assert_eq!(summary.created, 1);
        let filters = output("tc filter show dev pod ingress");
        assert!(
            filters.contains("overlay_egress direct-action"),
            "{filters}"
        );

        // Who insists on the guard is told.
        let wanted = [egress, guard(XdpMode::Native)];
        let summary = agent.sync_links(&wanted.into());
        let [(_, error)] = &summary.failed[..] else {
            panic!("{:?}", summary.failed);
        };
        assert!(error.to_string().contains("--xdp=off"), "{error}");
    });
}

#[test]
fn a_kernel_without_xdp_on_fragments_has_the_guard_without_them() {
    sandbox(|pins| {
        let object = with_rejected_programs(&["xdp.frags"]);
        let mut agent = try_open(pins, &object).expect("with the other guard");
        veth("pod");
        let guard = Attachment {
            xdp: XdpMode::Generic,
            ..at(Hook::Guard, "pod")
        };
        let summary = agent.sync_links(&[guard].into());
        assert_eq!((summary.created, summary.failed.len()), (1, 0));
        let attached = output("bpftool net show dev pod");
        assert!(attached.contains("generic id"), "{attached}");
        let programs = output("bpftool prog show name overlay_guard_1");
        assert!(programs.contains("overlay_guard_1"), "{programs}");
    });
}

#[test]
fn a_rejected_program_is_reported_with_the_verifiers_own_words() {
    sandbox(|pins| {
        let object = with_rejected_programs(&["classifier"]);
        let error = refusal(try_open(pins, &object));
        assert!(matches!(error, DatapathError::Verifier { .. }), "{error}");
        assert!(error.to_string().contains("unreachable insn 1"), "{error}");
    });
}

#[test]
fn the_pins_are_closed_to_others_and_a_directory_with_other_content_is_kept() {
    sandbox(|pins| {
        let mode = |path: &Path| {
            let metadata = std::fs::metadata(path).expect("metadata");
            metadata.permissions().mode() & 0o777
        };
        let bpffs = pins.parent().expect("the mount point");
        let before = mode(bpffs);
        drop(open(pins));
        let inside = PinDir::new(pins);
        assert_eq!(
            [mode(pins), mode(&inside.maps()), mode(&inside.links())],
            [0o700; 3]
        );

        drop(open(bpffs));
        let whole = PinDir::new(bpffs);
        assert_eq!(
            mode(bpffs),
            before,
            "a directory that was there is left as it was"
        );
        assert_eq!(whole.remove_all().expect("removed").len(), maps::ALL.len());
        assert_eq!(inside.pins().expect("pins").len(), maps::ALL.len());
    });
}

#[test]
fn removing_the_pins_detaches_everything_but_not_under_a_running_agent() {
    sandbox(|pins| {
        let dir = PinDir::new(pins);
        let mut agent = open(pins);
        let attached = agent.sync_links(&BTreeSet::from([veth("pod-a")]));
        assert_eq!(attached.created, 1, "{attached:?}");
        assert!(matches!(dir.remove_all(), Err(DatapathError::InUse { .. })));
        drop(agent);
        assert_eq!(programs_at("pod-a").len(), 1);

        let listed = dir.pins().expect("pins");
        assert_eq!(listed.len(), maps::ALL.len() + 1);
        assert_eq!(dir.remove_all().expect("removed"), listed);
        assert_eq!(programs_at("pod-a"), [0; 0]);
        assert!(!pins.exists());
        assert!(dir.remove_all().expect("nothing to do").is_empty());
    });
}
