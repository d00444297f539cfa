use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use overlay_common::{
    addr::MacAddr,
    config::{Config, FASTPATH_OFF, FASTPATH_STRICT},
    flow::{Flow, FlowKey},
    maps::MAX_NODES,
    node::{NODE_VALID, NODE_ZERO_CHECKSUM, Node},
    outcome::{Counter, Hook, Outcome},
    route::RouteEntry,
    short::closed,
    slow::EGRESS,
};

use super::*;
use crate::{
    datapath::{LinkState, PinDir},
    filter::per_packet::{self, ReportedRule},
    model::{Family, V4, V6},
    output::Format,
    view::{Device, EbpfTier, FlowTable, Overlay, PeerRoute},
};

/// A table with one live flow.
fn flows<F: Family>(overlay: &Overlay<F>) -> FlowTable<F> {
    let generation = overlay.config.generation;
    let flow = Flow {
        generation,
        egress_until: 2_000_000_000,
        ..Flow::default()
    };
    FlowTable {
        flows: vec![(FlowKey::default(), flow)],
        generation,
        capacity: 262_144,
    }
}

fn overlay<F: Family>(
    config: Config<F>,
    nodes: Vec<(u32, Node<F>)>,
    routes: Vec<(F::Network, RouteEntry)>,
) -> Overlay<F> {
    let config = Config {
        tcp_permit_ns: 15_000_000_000,
        udp_permit_ns: 15_000_000_000,
        icmp_permit_ns: 15_000_000_000,
        sctp_permit_ns: 15_000_000_000,
        fastpath: FASTPATH_STRICT,
        vxlan_port: 8472u16.to_be_bytes(),
        vni: [0, 0, 1],
        ..config
    };
    Overlay {
        config,
        nodes: nodes.into_iter().collect(),
        routes: routes.into_iter().collect(),
        peers: 0,
        nexthops: BTreeMap::new(),
    }
}

fn ipv4() -> Overlay<V4> {
    let node = Node {
        flags: NODE_VALID,
        ..Node::default()
    };
    let config = Config {
        generation: 4,
        vtep: Ipv4Addr::new(192, 168, 0, 1).into(),
        network: Ipv4Addr::new(10, 1, 0, 0).into(),
        network_mask: Ipv4Addr::new(255, 255, 0, 0).into(),
        subnet: Ipv4Addr::new(10, 1, 1, 0).into(),
        subnet_mask: Ipv4Addr::new(255, 255, 255, 0).into(),
        vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        vtep_ifindex: 5,
        pod_mtu: 1450,
        ..Config::default()
    };
    let route = (
        "10.1.2.0/24".parse().unwrap(),
        RouteEntry { node: 1, flags: 0 },
    );
    overlay(config, vec![(1, node)], vec![route])
}

/// With one peer that takes UDP checksum 0, and one that does not.
fn ipv6() -> Overlay<V6> {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().into();
    let node = |flags| Node {
        flags: NODE_VALID | flags,
        ..Node::default()
    };
    let config = Config {
        generation: 3,
        vtep: address("fd00::1"),
        network: address("fd00:10:5::"),
        network_mask: address("ffff:ffff:ffff::"),
        subnet: address("fd00:10:5:1::"),
        subnet_mask: address("ffff:ffff:ffff:ffff::"),
        vtep_mac: MacAddr::new([2, 0, 0, 0, 6, 1]),
        vtep_ifindex: 6,
        pod_mtu: 1430,
        ..Config::default()
    };
    let route = |subnet: &str, node| (subnet.parse().unwrap(), RouteEntry { node, flags: 0 });
    overlay(
        config,
        vec![(1, node(NODE_ZERO_CHECKSUM)), (2, node(0))],
        vec![route("fd00:10:5:2::/64", 1), route("fd00:10:5:3::/64", 2)],
    )
}

/// A node with the programs where the families served need them.
fn healthy(ipv4: Option<Overlay<V4>>, ipv6: Option<Overlay<V6>>) -> Sources {
    let counter = |packets| Counter {
        packets,
        bytes: packets * 100,
    };
    let mut links = vec![(Hook::Confirm, 2), (Hook::Ingress, 2)];
    if ipv4.is_some() {
        links.extend([(Hook::Confirm, 5), (Hook::Arrive, 5)]);
    }
    if ipv6.is_some() {
        links.extend([(Hook::Confirm, 6), (Hook::Arrive, 6)]);
    }
    links.extend([(Hook::Egress, 7), (Hook::Deliver, 7)]);
    let flows = FlowTables {
        ipv4: ipv4.as_ref().map(flows),
        ipv6: ipv6.as_ref().map(flows),
        now: Duration::from_secs(1),
    };
    let tier = EbpfTier {
        agent_running: true,
        ipv4,
        ipv6,
        counters: vec![
            (Hook::Egress, Outcome::FastTunnel, counter(999)),
            (Hook::Egress, Outcome::NoPermit, counter(1)),
            (Hook::Egress, Outcome::PodTunnel, counter(0)),
        ],
        links: links
            .into_iter()
            .map(|(hook, ifindex)| LinkState {
                hook,
                ifindex,
                alive: true,
            })
            .collect(),
        outer_rules: 0,
        per_packet_rules: per_packet::Report {
            heeded: true,
            ..per_packet::Report::default()
        },
    };
    Sources {
        tier,
        flows,
        bare_underlay: None,
    }
}

/// A device, and the routes to two peers.
fn tier(ifname: &str, vtep: &str, zero_checksum: bool, subnets: [&str; 2]) -> Tier {
    let route = |subnet: &str| PeerRoute {
        subnet: subnet.parse().unwrap(),
        vtep: vtep.parse().ok(),
        vtep_mac: Some("02:00:00:00:06:02".into()),
        mode: "tunnel",
        ifindex: Some(6),
        ifname: Some(ifname.into()),
        mtu: Some(1430),
    };
    Tier {
        device: Some(Device {
            ifindex: 6,
            ifname: ifname.into(),
            up: true,
            vtep: vtep.parse().ok(),
            vtep_mac: Some("02:00:00:00:06:01".into()),
            vni: Some(1),
            port: Some(8472),
            mtu: 1430,
            zero_checksum,
            in_agent: false,
        }),
        routes: subnets.map(route).into(),
    }
}

fn tier4() -> Tier {
    let subnets = ["10.1.2.0/24", "10.1.3.0/24"];
    tier("flannel.1", "192.168.0.1", true, subnets)
}

fn tier6(zero_checksum: bool) -> Tier {
    let subnets = ["fd00:10:5:2::/64", "fd00:10:5:3::/64"];
    tier("flannel-v6.1", "fd00::1", zero_checksum, subnets)
}

/// What the kernel has of IPv6 alone.
fn kernel6(zero_checksum: bool) -> KernelTier {
    KernelTier {
        ipv6: Some(tier6(zero_checksum)),
        ..KernelTier::default()
    }
}

fn report(sources: &Sources) -> Report {
    let name = |ifindex| match ifindex {
        2 => Some("eth0".into()),
        5 => Some("flannel.1".into()),
        6 => Some("flannel-v6.1".into()),
        7 => Some("vetha".into()),
        _ => None,
    };
    Report::new("/sys/fs/bpf/overlay".into(), sources, name)
}

fn text(report: &Report, format: Format) -> String {
    let mut out = Vec::new();
    output::print(report, format, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_healthy_node_is_summed_up_on_one_screen() {
    let sources = healthy(Some(ipv4()), None);
    insta::assert_snapshot!(text(&report(&sources), Format::Table));
}

#[test]
fn a_dual_stack_node_is_summed_up_on_one_screen() {
    let mut report = report(&healthy(Some(ipv4()), Some(ipv6())));
    report.add_kernel(kernel6(true));
    insta::assert_snapshot!(text(&report, Format::Table));
}

#[test]
fn a_node_without_ipv4_is_as_healthy() {
    let mut report = report(&healthy(None, Some(ipv6())));
    report.add_kernel(kernel6(false));
    insta::assert_snapshot!(text(&report, Format::Table));
}

#[test]
fn the_json_is_as_documented() {
    let sources = healthy(Some(ipv4()), None);
    insta::assert_snapshot!(text(&report(&sources), Format::Json));
}

#[test]
fn an_underlay_without_ethernet_headers_is_no_defect_but_said() {
    let mut sources = healthy(Some(ipv4()), None);
    sources.tier.links.retain(|link| link.hook != Hook::Ingress);
    sources.bare_underlay = Some("tun0".into());
    let report = report(&sources);
    assert_eq!(report.health, Health::Healthy, "{:?}", report.problems);
    let text = text(&report, Format::Table);
    assert!(
        text.contains("tun0 has no Ethernet headers: nothing is fast"),
        "{text}"
    );
}

#[test]
fn why_nothing_goes_the_short_way_is_said_once_for_both_families() {
    let said = |ipv4_closed, ipv6_closed, outer_rules| {
        let (mut ipv4, mut ipv6) = (ipv4(), ipv6());
        (ipv4.config.closed, ipv6.config.closed) = (ipv4_closed, ipv6_closed);
        let mut sources = healthy(Some(ipv4), Some(ipv6));
        sources.tier.outer_rules = outer_rules;
        let text = text(&report(&sources), Format::Table);
        let lines = text.lines().filter_map(|line| {
            let (name, reason) = line.split_once("no short way: ")?;
            Some(format!("{name}{}", reason.trim()))
        });
        lines.collect::<Vec<_>>()
    };
    assert!(said(0, 0, 0).is_empty());
    let filter = "inwards: a tc filter of others at the underlay";
    let qdisc = "outwards: a queueing discipline at the tunnel device";
    let rules = "outwards: rules that tell tunnel packets of a node apart";
    assert_eq!(said(closed::FILTER_IN, closed::FILTER_IN, 0), [filter]);
    assert_eq!(
        said(0, closed::QDISC, EGRESS.into()),
        [
            rules.to_owned(),
            format!("ipv6 {qdisc}"),
            format!("ipv6 {rules}")
        ]
    );
}

#[test]
fn the_json_of_ipv6_is_as_documented() {
    let report = report(&healthy(None, Some(ipv6())));
    let json = serde_json::to_string_pretty(&report.datapath).unwrap();
    insta::assert_snapshot!(json);
}

#[test]
fn rules_that_judge_each_packet_are_named_with_what_is_left_to_the_kernel() {
    let mut sources = healthy(Some(ipv4()), None);
    sources.tier.per_packet_rules.rules.push(ReportedRule {
        table: "ip filter".into(),
        chain: "FORWARD".into(),
        rule: "-A FORWARD -p tcp -m tcp --dport 80 -m string --string \"x\" -j DROP".into(),
        judges_by: "string".into(),
        left_to_kernel: vec!["IPv4 tcp to port 80".into()],
    });
    sources.tier.per_packet_rules.more = 2;
    let report = report(&sources);
    assert_eq!(report.problems, Vec::<String>::new());
    insta::assert_snapshot!(text(&report, Format::Table));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        json["datapath"]["per_packet_rules"]["rules"][0]["left_to_kernel"][0],
        "IPv4 tcp to port 80"
    );
}

#[test]
fn rules_that_cannot_be_read_are_a_problem() {
    let mut sources = healthy(Some(ipv4()), None);
    sources.tier.per_packet_rules.problem = Some("the rules cannot be read: no tool".into());
    assert_eq!(
        report(&sources).problems,
        ["every flow is left to the kernel: the rules cannot be read: no tool"]
    );
}

#[test]
fn every_defect_is_named_with_what_follows_from_it() {
    let mut sources = healthy(Some(ipv4()), None);
    sources.tier.agent_running = false;
    sources
        .tier
        .links
        .retain(|link| !matches!(link.hook, Hook::Ingress | Hook::Arrive));
    for link in sources
        .tier
        .links
        .iter_mut()
        .filter(|link| link.hook == Hook::Deliver)
    {
        link.ifindex = 9;
        link.alive = false;
    }
    sources.tier.ipv4.as_mut().unwrap().nodes.clear();
    let report = report(&sources);
    assert_eq!(report.health, Health::Degraded);
    insta::assert_snapshot!(text(&report, Format::Table));
}

#[test]
fn an_underlay_without_the_program_that_grants_permits_is_a_defect() {
    let mut sources = healthy(Some(ipv4()), None);
    sources
        .tier
        .links
        .retain(|link| (link.hook, link.ifindex) != (Hook::Confirm, 2));
    assert_eq!(
        report(&sources).problems,
        ["no confirm program on eth0: no permits are granted"]
    );
}

#[test]
fn without_a_fast_path_nothing_is_missed_that_learns() {
    let mut sources = healthy(Some(ipv4()), None);
    sources.tier.ipv4.as_mut().unwrap().config.fastpath = FASTPATH_OFF;
    let learns = |hook| matches!(hook, Hook::Confirm | Hook::Arrive | Hook::Deliver);
    sources.tier.links.retain(|link| !learns(link.hook));
    let report = report(&sources);
    assert_eq!(report.health, Health::Healthy, "{:?}", report.problems);
}

#[test]
fn defects_of_ipv6_are_named_as_such() {
    let mut sources = healthy(Some(ipv4()), Some(ipv6()));
    sources
        .tier
        .links
        .retain(|link| (link.hook, link.ifindex) != (Hook::Confirm, 6));
    sources.tier.ipv6.as_mut().unwrap().nodes.remove(&2);
    assert_eq!(
        report(&sources).problems,
        [
            "no confirm program on flannel-v6.1: no permits are granted",
            "fd00:10:5:3::/64 has no node entry: the kernel carries its packets",
        ]
    );
}

/// As many nodes as fit.
fn fill<F: Family>(overlay: &mut Overlay<F>, one_less: bool) {
    let node = overlay.nodes[&1];
    let last = u32::try_from(MAX_NODES).unwrap() - u32::from(one_less);
    overlay.nodes = (1..last).map(|index| (index, node)).collect();
}

#[test]
fn a_full_node_map_is_a_problem_in_either_family() {
    let mut sources = healthy(Some(ipv4()), Some(ipv6()));
    fill(sources.tier.ipv4.as_mut().unwrap(), true);
    fill(sources.tier.ipv6.as_mut().unwrap(), true);
    assert_eq!(report(&sources).problems, Vec::<String>::new());
    fill(sources.tier.ipv4.as_mut().unwrap(), false);
    fill(sources.tier.ipv6.as_mut().unwrap(), false);
    assert_eq!(
        report(&sources).problems,
        [
            "the node map is full: peers beyond these 16383 have the kernel tier only",
            "the IPv6 node map is full: peers beyond these 16383 have the kernel tier only",
        ]
    );
}

#[test]
fn before_the_first_lease_the_node_is_not_configured() {
    let report = report(&healthy(None, None));
    assert_eq!(
        report.problems,
        ["the node is not configured yet: no lease was acquired"]
    );
}

#[test]
fn without_pins_it_cannot_tell_and_says_where_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let args = Args {
        pinned: Pinned {
            pin_dir: dir.path().join("none"),
            output: Format::Table,
        },
    };
    let mut out = Vec::new();
    let code = run(
        &args,
        snapshot(&args, KernelTier::default()),
        &Host::default(),
        &mut out,
    )
    .unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)));
    assert!(text.starts_with("unknown\n"), "{text}");
    assert!(text.contains(&*dir.path().to_string_lossy()), "{text}");
    assert!(text.contains("--pin-dir"), "{text}");
}

fn snapshot(args: &Args, kernel: KernelTier) -> Snapshot {
    Snapshot {
        ebpf: EbpfTier::read(&args.pinned.pins()),
        kernel,
    }
}

/// What `status` says of a node whose agent noted `absence`, and its exit code.
fn of_absence(absence: &Absence, is_running: bool, kernel: KernelTier) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let pin_dir = dir.path().join("overlay");
    let lock = PinDir::new(&pin_dir).note_absence(absence).unwrap();
    let lock = is_running.then_some(lock);
    let args = Args {
        pinned: Pinned {
            pin_dir,
            output: Format::Table,
        },
    };
    let mut out = Vec::new();
    let code = run(&args, snapshot(&args, kernel), &Host::default(), &mut out).unwrap();
    drop(lock);
    (String::from_utf8(out).unwrap(), format!("{code:?}"))
}

fn code(code: u8) -> String {
    format!("{:?}", ExitCode::from(code))
}

#[test]
fn a_node_whose_kernel_refuses_the_programs_says_why() {
    let absence = Absence::Refused("the verifier rejected overlay_ingress".into());
    assert_eq!(
        of_absence(&absence, true, KernelTier::default()),
        (
            "degraded\n  \
             kernel tier alone, every packet takes the kernel's way: the verifier rejected overlay_ingress\n\n\
             agent: running\ntier:  kernel tier alone\n"
                .to_owned(),
            code(1)
        )
    );
}

#[test]
fn a_node_that_is_to_have_the_kernel_tier_is_healthy_while_an_agent_runs() {
    let (text, exit) = of_absence(&Absence::Asked, true, KernelTier::default());
    assert_eq!(
        text,
        "healthy\n\nagent: running\ntier:  kernel tier alone, as --datapath=kernel asks\n"
    );
    assert_eq!(exit, code(0));
    let (text, exit) = of_absence(&Absence::Asked, false, KernelTier::default());
    assert!(
        text.starts_with("degraded\n  no agent is running"),
        "{text}"
    );
    assert_eq!(exit, code(1));
}

#[test]
fn a_node_without_programs_shows_what_the_kernel_has_of_both_families() {
    let kernel = KernelTier {
        ipv4: Some(tier4()),
        ..kernel6(true)
    };
    let (text, exit) = of_absence(&Absence::Asked, true, kernel);
    assert_eq!(exit, code(0));
    insta::assert_snapshot!(text);
}

#[test]
fn a_device_that_is_down_and_a_lost_tunnel_end_are_problems_of_either_family() {
    let mut kernel = KernelTier {
        ipv4: Some(tier4()),
        ..kernel6(true)
    };
    for tier in [&mut kernel.ipv4, &mut kernel.ipv6].into_iter().flatten() {
        tier.device.as_mut().unwrap().up = false;
        tier.routes[0].vtep = None;
    }
    let mut report = report(&healthy(Some(ipv4()), Some(ipv6())));
    report.add_kernel(kernel);
    assert_eq!(report.health, Health::Degraded);
    assert_eq!(
        report.problems,
        [
            "flannel.1 is down: IPv4 pods reach nobody through the tunnel",
            "10.1.2.0/24 has a route and no tunnel end: its packets are dropped",
            "flannel-v6.1 is down: IPv6 pods reach nobody through the tunnel",
            "fd00:10:5:2::/64 has a route and no tunnel end: its packets are dropped",
        ]
    );
}

#[test]
fn pods_without_programs_are_named() {
    let mut report = report(&healthy(Some(ipv4()), None));
    report.unserved_pods = vec![Unserved {
        ifindex: 12,
        ifname: "tap0".into(),
        kind: "tun".into(),
    }];
    let text = text(&report, Format::Table);
    assert!(text.starts_with("healthy\n"), "{text}");
    assert!(
        text.ends_with("POD WITHOUT PROGRAMS  KIND\ntap0                  tun\n"),
        "{text}"
    );
}
