//! What the maps hold, and when it flushes.

use std::{
    collections::BTreeSet,
    fs::File,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use overlay_agent::{
    datapath::{Datapath, Flusher, Maps, Options, PinDir},
    object::OBJECT,
};
use overlay_common::{
    addr::{Ipv4Be, MacAddr},
    flow::{Flow, FlowKey4},
    maps,
};
use overlay_tests::seccomp::{BpfDenial, deny_bpf_here};

use super::sandbox::{apply, generation, open, options, pinned, routed, sandbox, subnet};

#[test]
fn a_flush_waits_for_nobody_and_never_repeats_a_generation() {
    sandbox(|pins| {
        let agent = open(pins);
        let mut flusher = agent.flusher().expect("a flusher");
        let generation = || generation(pins);
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
fn a_peer_that_moves_keeps_its_node_and_disturbs_no_flow_and_one_that_goes_flushes() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let start = apply(&mut agent, &[(1, 1), (2, 2)]);
        let node = routed(&pinned(pins))[&subnet(1)].0;

        let moved = apply(&mut agent, &[(1, 7), (2, 2)]);
        assert_eq!((moved.updated, moved.flushed), (1, false));
        assert_eq!(routed(&pinned(pins))[&subnet(1)], (node, [192, 168, 0, 7]));
        let entry = pinned(pins).overlays.ipv4.nodes().expect("nodes")[&node];
        assert_eq!(entry.encap.ipv4.dst.octets, [192, 168, 0, 7]);
        assert_eq!(entry.encap.inner_eth.dst, MacAddr::new([2, 0, 0, 0, 0, 7]));
        assert_eq!(generation(pins), start.generation);

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
        meddler
            .overlays
            .ipv4
            .remove_route(subnet(1))
            .expect("removed");
        meddler
            .overlays
            .ipv4
            .put_route(subnet(77), 2)
            .expect("added");

        agent.distrust_tables();
        apply(&mut agent, &[(1, 1), (2, 2)]);
        assert_eq!(routed(&pinned(pins)), right);
    });
}

#[test]
fn routes_are_the_same_on_a_kernel_that_reads_them_one_by_one() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let peers: Vec<_> = (1..200).map(|number| (number, number)).collect();
        apply(&mut agent, &peers);
        let maps = pinned(pins);
        let at_once = maps.overlays.ipv4.routes().expect("routes");
        assert_eq!(at_once.len(), peers.len());
        let nodes: BTreeSet<u32> = at_once.values().map(|route| route.node).collect();
        let nexthops = maps.overlays.ipv4.nexthops(&nodes).expect("next hops");
        assert!(nexthops.keys().eq(&nodes), "{nexthops:?}");

        deny_bpf_here(BpfDenial::Batches).expect("a seccomp filter");
        maps.overlays
            .ipv4
            .nodes()
            .expect_err("nothing is read at once any more");
        assert_eq!(maps.overlays.ipv4.routes().expect("routes"), at_once);
    });
}

#[test]
fn gateways_are_exactly_those_given_and_a_changed_one_flushes() {
    sandbox(|pins| {
        let mut agent = open(pins);
        let generation = || generation(pins);
        let start = generation();
        let mac = |last| MacAddr::new([6, 0, 0, 0, 0, last]);
        assert!(!agent.set_gateways(&[(7, mac(1))].into()).expect("set"));
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
        let flows = pinned(pins).overlays.ipv4.flows().expect("flows");
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
