//! One agent after the other on the same pins.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use overlay_agent::{
    datapath::{Datapath, DatapathError, Maps, Options, PinDir},
    object::OBJECT,
};
use overlay_common::{maps, outcome::Hook};
use overlay_tests::private_netns::run;

use super::sandbox::{
    apply, at, open, options, packets_at, pinned, programs_at, refusal, routed, sandbox, try_open,
    veth,
};

#[test]
fn a_restarted_agent_takes_over_the_maps() {
    sandbox(|pins| {
        let mut first = open(pins);
        apply(&mut first, &[(1, 1), (2, 2), (3, 3)]);
        apply(&mut first, &[(2, 2), (3, 3)]);
        let before = (
            routed(&pinned(pins)),
            pinned(pins).overlays.ipv4.config().expect("config"),
        );
        drop(first);

        let mut second = open(pins);
        let adopted = pinned(pins).overlays.ipv4.config().expect("config");
        assert_eq!(
            routed(&pinned(pins)),
            before.0,
            "forwarding state is as the first agent left it"
        );
        assert_eq!(adopted.stamp_key, before.1.stamp_key);
        assert_ne!(adopted.stamp_key, [0; 2], "the key is a secret");
        assert_eq!(
            adopted.generation, before.1.generation,
            "flows keep their permits until the kernel path is in order"
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
        assert!(pinned(pins).overlays.ipv4.max_flows() >= 8_192);
        assert_eq!(routed(&pinned(pins)), before);
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
