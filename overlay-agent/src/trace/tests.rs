use std::time::Duration;

use overlay_common::{
    config::{Config, FASTPATH_OFF, FASTPATH_STRICT, FASTPATH_TRUSTED},
    flow::{Flow, FlowKey, REWRITE_DESTINATION},
    node::{MODE_DIRECT, MODE_TUNNEL, NODE_VALID, Nexthop, Node},
    outcome::Outcome,
    route::RouteEntry,
    slow::{self, Match},
};

use super::{
    facts::{End, Facts, Interface, Overlay, Peer, Pod, Route, Translation},
    fast::{self, Fast, Maps, Side},
    judge::{Judged, State, Verdict, judge},
    packet::{Packet, Protocol, Translated},
    rules::Passage,
};
use crate::{
    model::V4,
    output::{self, Format},
    view,
};

fn interface(name: &str, mtu: u32) -> Interface {
    Interface {
        name: name.to_owned(),
        mtu,
        is_up: true,
    }
}

fn packet() -> Packet {
    Packet {
        protocol: Protocol::Tcp,
        source: [10, 5, 1, 2].into(),
        source_port: Some(40_000),
        destination: [10, 5, 2, 3].into(),
        destination_port: Some(80),
    }
}

fn fast_now() -> Fast {
    Fast {
        now: true,
        hook: Some("egress"),
        outcome: Some("fast_tunnel"),
        reason: "the program encapsulates it and sends it by the underlay".to_owned(),
        seconds_left: Some(12.5),
        mtu: Some(1450),
    }
}

/// From a pod here to one of another node, and nothing wrong with it.
fn facts() -> Facts {
    let route = |name, mtu, gateway: [u8; 4], neighbour: &str| Route {
        interface: Some(interface(name, mtu)),
        gateway: Some(gateway.into()),
        neighbour: Some(neighbour.to_owned()),
        mtu: None,
        is_local: false,
    };
    Facts {
        packet: packet(),
        source: End::PodHere,
        destination: End::PodElsewhere,
        overlay: Some(Overlay {
            vtep: [172, 30, 0, 11].into(),
            vni: Some(1),
            port: Some(8472),
            pod_mtu: Some(1450),
            overhead: 50,
            device: Some(interface("flannel.1", 1450)),
        }),
        sender: Some(Pod {
            interface: Some(interface("vetha", 1450)),
            gateway: interface("cni0", 1450),
            mac: Some("02:00:00:00:01:02".to_owned()),
            unserved: None,
        }),
        receiver: None,
        translation: None,
        connection: Some(true),
        peer: Some(Peer {
            subnet: "10.5.2.0/24".parse().unwrap(),
            vtep: Some([172, 30, 0, 12].into()),
            is_tunnelled: true,
            kernel_vtep: None,
            has_kernel_route: true,
            trouble: None,
        }),
        route: Some(Ok(route(
            "flannel.1",
            1450,
            [10, 5, 2, 0],
            "02:00:00:00:00:12",
        ))),
        rules: Some(Passage::Accepted),
        outer_rules: Some(Passage::Accepted),
        underlay: Some(Ok(route(
            "eth0",
            1500,
            [172, 30, 0, 1],
            "02:00:00:00:00:01",
        ))),
        fast: fast_now(),
        missing: Vec::new(),
    }
}

fn text(judged: &Judged, format: Format) -> String {
    let mut out = Vec::new();
    output::print(judged, format, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The steps that are not as they should be.
fn remarkable(judged: &Judged) -> Vec<(&'static str, State)> {
    let steps = judged.steps.iter().filter(|step| step.state != State::Ok);
    steps.map(|step| (step.name, step.state)).collect()
}

#[track_caller]
fn expect(facts: Facts, verdict: Verdict, remarks: &[(&'static str, State)]) -> Judged {
    let judged = judge(facts);
    assert_eq!(remarkable(&judged), remarks, "{judged:#?}");
    assert_eq!(judged.verdict, verdict);
    judged
}

#[test]
fn the_table_goes_along_the_packets_way() {
    let judged = expect(facts(), Verdict::Passes, &[]);
    insta::assert_snapshot!(text(&judged, Format::Table));
}

#[test]
fn the_json_is_as_documented() {
    let json = text(&judge(facts()), Format::Json);
    let document = include_str!("../../../docs/operator-commands.md");
    let (_, section) = document.split_once("\n## trace\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    for key in json
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"'))
    {
        let (key, _) = key.split_once('"').unwrap();
        let forms = [format!("`{key}`"), format!("`{key}[]`")];
        assert!(
            forms.iter().any(|form| section.contains(form)),
            "{key} is not documented"
        );
    }
    insta::assert_snapshot!(json);
}

#[test]
fn what_arrives_meets_the_same_things_the_other_way_round() {
    let mut incoming = facts();
    (incoming.source, incoming.destination) = (End::PodElsewhere, End::PodHere);
    let ends = (incoming.packet.source, incoming.packet.destination);
    (incoming.packet.destination, incoming.packet.source) = ends;
    incoming.receiver = incoming.sender.take();
    incoming.route = Some(Ok(Route {
        interface: Some(interface("cni0", 1450)),
        gateway: None,
        neighbour: None,
        mtu: None,
        is_local: false,
    }));
    let judged = expect(incoming, Verdict::Passes, &[]);
    insta::assert_snapshot!(text(&judged, Format::Table));
}

#[test]
fn what_stops_a_packet_is_the_step_that_says_so() {
    let stopped = |change: fn(&mut Facts), name| {
        let mut facts = facts();
        change(&mut facts);
        expect(facts, Verdict::Stopped, &[(name, State::Stopped)]);
    };
    stopped(|facts| facts.sender = None, "sender");
    stopped(|facts| facts.peer = None, "peer");
    stopped(
        |facts| facts.route = Some(Err("there is none".into())),
        "route",
    );
    stopped(
        |facts| facts.underlay = Some(Err("there is none".into())),
        "underlay",
    );
    let dropped = || {
        Some(Passage::Dropped {
            by: "the rule -j DROP".into(),
        })
    };
    let mut facts_of = facts();
    facts_of.rules = dropped();
    let judged = expect(facts_of, Verdict::Stopped, &[("rules", State::Stopped)]);
    let step = judged
        .steps
        .iter()
        .find(|step| step.name == "rules")
        .unwrap();
    assert_eq!(step.text, "the rule -j DROP drops it");
    let mut outer = facts();
    outer.outer_rules = dropped();
    expect(outer, Verdict::Stopped, &[("tunnel rules", State::Stopped)]);
    let mut down = facts();
    if let Some(overlay) = &mut down.overlay {
        overlay.device = None;
    }
    expect(down, Verdict::Stopped, &[("tunnel", State::Stopped)]);
}

#[test]
fn a_narrow_place_is_named_with_what_fits() {
    let mut narrow = facts();
    if let Some(Ok(underlay)) = &mut narrow.underlay {
        underlay.mtu = Some(1400);
    }
    let judged = expect(narrow, Verdict::Troubled, &[("size", State::Warning)]);
    assert_eq!(judged.mtu, Some(1350));
    assert!(judged.steps.last().unwrap().text.contains("eth0"));
}

#[test]
fn trouble_that_probes_see_and_entries_that_lead_elsewhere_are_warnings() {
    let mut facts_of = facts();
    let peer = facts_of.peer.as_mut().unwrap();
    peer.trouble = Some(("path_mtu".into(), "Small packets pass.".into()));
    peer.kernel_vtep = Some([172, 30, 0, 99].into());
    let warnings = [("peer", State::Warning), ("tunnel", State::Warning)];
    expect(facts_of, Verdict::Troubled, &warnings);
}

#[test]
fn what_is_not_known_is_not_taken_for_granted() {
    let mut unresolved = facts();
    unresolved.sender.as_mut().unwrap().interface = None;
    unresolved.rules = Some(Passage::Unclear {
        by: "the rule X".into(),
    });
    let unknown = [("sender", State::Unknown), ("rules", State::Unknown)];
    expect(unresolved, Verdict::Unknown, &unknown);
    let mut elsewhere = facts();
    (elsewhere.source, elsewhere.destination) = (End::PodElsewhere, End::PodElsewhere);
    expect(elsewhere, Verdict::Unknown, &[("node", State::Unknown)]);
    let mut unserved = facts();
    unserved.overlay = None;
    expect(unserved, Verdict::Unknown, &[("node", State::Unknown)]);
}

#[test]
fn pods_behind_one_bridge_are_not_routed_and_a_service_is_told_with_its_backend() {
    let mut local = facts();
    local.destination = End::PodHere;
    local.receiver.clone_from(&local.sender);
    local.peer = None;
    (local.route, local.rules) = (None, None);
    expect(local, Verdict::Passes, &[]);
    let mut service = facts();
    service.packet.destination = [10, 96, 0, 1].into();
    service.translation = Some(Translation {
        of: Translated::Destination,
        to: ([10, 5, 2, 3], 8080).into(),
        known_by: "conntrack",
    });
    let judged = expect(service, Verdict::Passes, &[]);
    let step = judged.steps.iter().find(|step| step.name == "translation");
    assert!(step.unwrap().text.contains("10.5.2.3:8080"));
}

const NOW: Duration = Duration::from_secs(1_000);
const GENERATION: u32 = 7;

fn overlay() -> view::Overlay<V4> {
    let node = Node::<V4> {
        flags: NODE_VALID,
        vtep: std::net::Ipv4Addr::new(172, 30, 0, 12).into(),
        ..Node::default()
    };
    view::Overlay {
        config: Config {
            fastpath: FASTPATH_STRICT,
            generation: GENERATION,
            tcp_permit_ns: 1,
            udp_permit_ns: 1,
            icmp_permit_ns: 1,
            sctp_permit_ns: 1,
            network: std::net::Ipv4Addr::new(10, 5, 0, 0).into(),
            network_mask: std::net::Ipv4Addr::new(255, 255, 0, 0).into(),
            subnet: std::net::Ipv4Addr::new(10, 5, 1, 0).into(),
            subnet_mask: std::net::Ipv4Addr::new(255, 255, 255, 0).into(),
            vtep_ifindex: 5,
            ..Config::default()
        },
        routes: [(
            "10.5.2.0/24".parse().unwrap(),
            RouteEntry { node: 3, flags: 0 },
        )]
        .into(),
        nodes: [(3, node)].into(),
        peers: 0,
        nexthops: [(3, Nexthop::default())].into(),
    }
}

fn entry() -> (FlowKey<V4>, Flow) {
    let key = FlowKey {
        local: std::net::Ipv4Addr::new(10, 5, 1, 2).into(),
        remote: std::net::Ipv4Addr::new(10, 5, 2, 3).into(),
        local_port: 40_000_u16.to_be_bytes(),
        remote_port: 80_u16.to_be_bytes(),
        protocol: 6,
        ..FlowKey::default()
    };
    let flow = Flow {
        egress_until: 1_010_000_000_000,
        ingress_until: 1_005_000_000_000,
        generation: GENERATION,
        node: 3,
        egress_mode: MODE_TUNNEL,
        ingress_mode: MODE_TUNNEL,
        vtep: [172, 30, 0, 12],
        path_mtu: 1450,
        pod_mtu: 1400,
        ..Flow::default()
    };
    (key, flow)
}

/// What the programs would do with the packet, after `change`.
fn judged(
    change: impl FnOnce(&mut view::Overlay<V4>, &mut (FlowKey<V4>, Flow)),
    packet: Packet,
    side: Side,
) -> (bool, Option<&'static str>, Option<f64>) {
    let (mut overlay, mut entry) = (overlay(), entry());
    change(&mut overlay, &mut entry);
    let maps = Maps {
        overlay: &overlay,
        flows: &[entry],
        now: NOW,
        matches: Some(&[]),
        rules: String::new(),
    };
    let fast = fast::judge(&maps, &packet, side);
    (fast.now, fast.outcome, fast.seconds_left)
}

#[test]
fn a_flow_with_a_permit_is_fast_with_and_without_its_source_port() {
    let fast = (true, Some(Outcome::FastTunnel.name()), Some(10.0));
    assert_eq!(judged(|_, _| {}, packet(), Side::Egress), fast);
    let any = Packet {
        source_port: None,
        ..packet()
    };
    assert_eq!(judged(|_, _| {}, any, Side::Egress), fast);
    let back = Packet {
        source: packet().destination,
        source_port: Some(80),
        destination: packet().source,
        destination_port: Some(40_000),
        ..packet()
    };
    let fast = (true, Some(Outcome::FastTunnel.name()), Some(5.0));
    assert_eq!(judged(|_, _| {}, back, Side::Ingress), fast);
    let direct = judged(
        |overlay, (_, flow)| {
            flow.egress_mode = MODE_DIRECT;
            overlay.nodes.get_mut(&3).unwrap().flags |= overlay_common::node::NODE_DIRECT;
        },
        packet(),
        Side::Egress,
    );
    assert_eq!(direct.1, Some(Outcome::FastDirect.name()));
}

#[test]
fn in_trusted_mode_a_pair_of_pods_has_one_permit() {
    let pair = |mode| {
        judged(
            |overlay, (key, _)| {
                overlay.config.fastpath = mode;
                (key.local_port, key.remote_port, key.protocol) = ([0; 2], [0; 2], 0);
            },
            packet(),
            Side::Egress,
        )
    };
    assert!(pair(FASTPATH_TRUSTED).0);
    assert!(!pair(FASTPATH_STRICT).0);
}

#[test]
fn what_keeps_a_flow_from_being_fast_is_named_as_the_programs_count_it() {
    type Change = fn(&mut view::Overlay<V4>, &mut (FlowKey<V4>, Flow));
    let cases: [(Change, Outcome); 8] = [
        (
            |overlay, _| overlay.config.fastpath = FASTPATH_OFF,
            Outcome::Disabled,
        ),
        (|_, (_, flow)| flow.egress_until = 1, Outcome::NoPermit),
        (|_, (_, flow)| flow.egress_until = 0, Outcome::NoPermit),
        (|_, (key, _)| key.protocol = 17, Outcome::NoPermit),
        (|_, (_, flow)| flow.generation -= 1, Outcome::Generation),
        (|_, (_, flow)| flow.path_changes = 1, Outcome::Nexthop),
        (
            |_, (_, flow)| flow.vtep = [172, 30, 0, 99],
            Outcome::Nexthop,
        ),
        (
            |_, (_, flow)| flow.egress_mode = MODE_DIRECT,
            Outcome::Nexthop,
        ),
    ];
    for (change, outcome) in cases {
        let found = judged(change, packet(), Side::Egress);
        assert_eq!(found, (false, Some(outcome.name()), None));
    }
    let elsewhere = Packet {
        destination: [192, 0, 2, 1].into(),
        ..packet()
    };
    let found = judged(|_, _| {}, elsewhere, Side::Egress);
    assert_eq!(found.1, Some(Outcome::NotOverlay.name()));
    let unleased = Packet {
        destination: [10, 5, 9, 1].into(),
        ..packet()
    };
    let found = judged(|_, _| {}, unleased, Side::Egress);
    assert_eq!(found.1, Some(Outcome::Nexthop.name()));
}

#[test]
fn rules_that_judge_each_packet_are_named() {
    let matching = Match::<V4> {
        src_ports: [0, u16::MAX],
        dst_ports: [80, 80],
        protocols: slow::TCP,
        directions: slow::EGRESS,
        ..Match::default()
    };
    let overlay = overlay();
    let mut maps = Maps {
        overlay: &overlay,
        flows: &[],
        now: NOW,
        matches: Some(&[matching]),
        rules: "-m limit in chain FORWARD".to_owned(),
    };
    let found = fast::judge(&maps, &packet(), Side::Egress);
    assert_eq!(found.outcome, Some(Outcome::PerPacketRule.name()));
    assert!(found.reason.contains("-m limit"), "{found:?}");
    assert_eq!(found.hook, Some("confirm"));
    let other = Packet {
        destination_port: Some(81),
        ..packet()
    };
    let found = fast::judge(&maps, &other, Side::Egress);
    assert_eq!(found.outcome, Some(Outcome::NoPermit.name()));
    maps.matches = None;
    let found = fast::judge(&maps, &other, Side::Egress);
    assert_eq!(found.outcome, Some(Outcome::PerPacketRule.name()));
}

#[test]
fn a_translation_that_the_flow_table_remembers_is_found() {
    let overlay = overlay();
    let (key, mut flow) = entry();
    flow.rewrite = REWRITE_DESTINATION;
    flow.rewrite_address[..4].copy_from_slice(&[10, 5, 2, 9]);
    flow.rewrite_port = 8080_u16.to_be_bytes();
    let maps = Maps {
        overlay: &overlay,
        flows: &[(key, flow)],
        now: NOW,
        matches: Some(&[]),
        rules: String::new(),
    };
    let to = ([10, 5, 2, 9], 8080).into();
    let found = fast::translation(&maps, &packet(), Side::Egress);
    assert_eq!(found, Some((Translated::Destination, to)));
    assert_eq!(fast::translation(&maps, &packet(), Side::Ingress), None);
    let found = fast::judge(&maps, &packet(), Side::Egress);
    assert_eq!(found.outcome, Some(Outcome::FastTranslated.name()));
}
