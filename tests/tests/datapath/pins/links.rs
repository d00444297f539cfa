//! Programs at interfaces: those that are wanted, and no others.

use std::{collections::BTreeSet, fs};

use overlay_agent::datapath::{Attachment, PinDir, link_states};
use overlay_common::outcome::Hook;
use overlay_tests::private_netns::run;

use super::sandbox::{at, open, programs_at, sandbox, veth};

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
