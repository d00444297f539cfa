//! Whatever happens in whatever order, the node ends up with its record and the right peers, and
//! on the way writes nothing it must not write (see `Sim::check`).

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Happening {
    PeerWrites(u8, u8),
    PeerLeaves(u8),
    OwnRecordDeleted,
    OwnRecordTaken,
    OwnRecordReserved,
    OwnRecordSpoilt,
    Compaction,
    LossOfData,
    Disconnect,
    Reconnect,
    Readdressed(bool),
    AnswersLate(bool),
    AnswersLost(u8),
    EventsArrive,
    Minutes(u16),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        6 => (0..5_u8, 10..13_u8).prop_map(|(n, ip)| PeerWrites(n, ip)),
        3 => (0..5_u8).prop_map(PeerLeaves),
        1 => Just(OwnRecordDeleted),
        1 => Just(OwnRecordTaken),
        1 => Just(OwnRecordReserved),
        1 => Just(OwnRecordSpoilt),
        2 => Just(Compaction),
        1 => Just(LossOfData),
        2 => Just(Disconnect),
        3 => Just(Reconnect),
        1 => any::<bool>().prop_map(Readdressed),
        2 => any::<bool>().prop_map(AnswersLate),
        1 => (1..3_u8).prop_map(AnswersLost),
        4 => Just(EventsArrive),
        4 => (1..2000_u16).prop_map(Minutes),
    ]
}

fn peer_key(n: u8) -> LeaseKey {
    key(&format!("10.3.{}.0-24", 100 + n))
}

fn published(moved: bool) -> LeaseAttrs {
    if moved {
        LeaseAttrs::vxlan([192, 168, 0, 77].into(), 1, MAC)
    } else {
        attrs()
    }
}

impl Sim {
    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::PeerWrites(n, ip) => {
                let attrs = LeaseAttrs::alloc([192, 168, 0, ip].into());
                self.store.force(peer_key(n), attrs, None);
            }
            Happening::PeerLeaves(n) => self.store.remove(&peer_key(n)),
            Happening::OwnRecordDeleted => self.store.remove(&own_key()),
            Happening::OwnRecordTaken => {
                let theirs = LeaseAttrs::alloc(OTHER);
                self.store.force(own_key(), theirs, Some(RENEWAL.ttl));
            }
            Happening::OwnRecordReserved => {
                self.store.force(own_key(), LeaseAttrs::alloc(NODE), None);
            }
            Happening::OwnRecordSpoilt => {
                let reason = "junk".to_owned();
                self.store
                    .write(own_key(), Err(ValueError { reason }), None);
            }
            Happening::Compaction => self.store.compact(),
            Happening::LossOfData => {
                self.disconnect();
                self.store.wipe();
            }
            Happening::Disconnect => self.disconnect(),
            Happening::Reconnect if !self.connected => self.reconnect(),
            Happening::Reconnect => {}
            Happening::Readdressed(moved) => self.give(Input::Publish(published(moved))),
            Happening::AnswersLate(true) => self.late = true,
            Happening::AnswersLate(false) => self.settle(),
            Happening::AnswersLost(count) => self.lose = count.into(),
            Happening::EventsArrive => self.deliver(),
            Happening::Minutes(minutes) => self.pass(Duration::from_mins(minutes.into())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_node_recovers_from_every_sequence_of_mishaps(
        happenings in vec(happening(), 1..40),
        moved: bool,
    ) {
        let mut sim = Sim::new();
        for happening in happenings {
            sim.happen(happening);
        }
        // The world calms down.
        sim.lose = 0;
        sim.settle();
        sim.give(Input::Publish(published(moved)));
        sim.disconnect();
        sim.reconnect();
        if sim.stored().is_some_and(|attrs| attrs.public_ip == OTHER) {
            sim.store.remove(&own_key());
        }
        sim.pass(2 * Renewal::TTL);

        prop_assert_eq!(sim.state(), OwnState::Held);
        prop_assert_eq!(sim.stored(), Some(published(moved)));
        prop_assert_eq!(&sim.alarms, &[]);
        let expected: Vec<_> = sim
            .store
            .list()
            .entries
            .into_iter()
            .filter(|entry| entry.key != own_key())
            .map(|entry| (entry.key, entry.value.unwrap()))
            .collect();
        let peers = sim.core.peers().values();
        let found: Vec<_> = peers.map(|peer| (peer.key, LeaseAttrs::clone(&peer.attrs))).collect();
        prop_assert_eq!(found, expected);
    }
}
