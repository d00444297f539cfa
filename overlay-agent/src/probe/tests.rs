use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

use super::{
    book::{Ask, Book, Target},
    packet::{Identity, Kind, Packet},
    told::Told,
    verdict::Verdict,
};
use crate::ticks::OFTEN;

const STEP: Duration = Duration::from_millis(10);
const RTT: Duration = Duration::from_millis(1);

/// What gets there of what a node sends.
#[derive(Clone, Copy, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each passes or does not, whatever the others do"
)]
struct World {
    small: bool,
    large: bool,
    inside: bool,
    outside: bool,
    /// The peer's own questions.
    asks: bool,
    /// Somebody else answers.
    other: bool,
    /// Those without a checksum.
    plain: bool,
    /// Every third of the small ones is lost.
    lossy: bool,
}

const WELL: World = World {
    small: true,
    large: true,
    inside: true,
    outside: true,
    asks: true,
    other: false,
    plain: true,
    lossy: false,
};

fn address(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a01_0000 + (index << 8)).into()
}

fn target(index: u32) -> Target {
    Target {
        subnet: format!("{}/24", address(index)).parse().unwrap(),
        public_ip: Ipv4Addr::from_bits(0xc0a8_0000 + index).into(),
        shared: false,
    }
}

fn targets(count: u32) -> BTreeMap<IpAddr, Target> {
    (1..=count)
        .map(|index| (address(index), target(index)))
        .collect()
}

struct Sim {
    book: Book,
    now: Instant,
    step: Duration,
    rng: StdRng,
    /// When each packet was sent.
    sent: Vec<Instant>,
    smalls: u32,
}

impl Sim {
    fn new(targets: &BTreeMap<IpAddr, Target>) -> Self {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(7);
        let mut book = Book::new(now);
        book.want(targets, now, &mut rng);
        Self {
            book,
            now,
            step: STEP,
            rng,
            sent: Vec::new(),
            smalls: 0,
        }
    }

    fn run(&mut self, time: Duration, world: World) {
        let end = self.now + time;
        let mut next_question = self.now;
        while self.now < end {
            if world.asks && next_question <= self.now {
                next_question = self.now + Duration::from_secs(5);
                let peers: Vec<_> = self.book.peers.keys().copied().collect();
                for from in peers {
                    let question = packet(Kind::Question, 1, 2, from);
                    if self.book.receive(from, &question, self.now) {
                        self.sent.push(self.now);
                    }
                }
            }
            loop {
                let asks = self.book.asks(self.now, &mut self.rng);
                if asks.is_empty() {
                    break;
                }
                for ask in asks {
                    self.sent.push(self.now);
                    self.answer(ask, world);
                }
            }
            self.now += self.step;
        }
    }

    fn answer(&mut self, ask: Ask, world: World) {
        let now = self.now + RTT;
        match ask {
            Ask::Small { to, packet: asked } | Ask::Large { to, packet: asked } => {
                let passes = match ask {
                    Ask::Small { .. } => {
                        self.smalls += 1;
                        world.small && !(world.lossy && self.smalls.is_multiple_of(3))
                    }
                    _ => world.large,
                };
                if passes {
                    let by = if world.other { address(99) } else { to };
                    let answer = packet(Kind::Answer, asked.number, asked.cookie, by);
                    self.book.receive(to, &answer, now);
                }
            }
            Ask::Plain { to, packet: asked } if world.plain => {
                let answer = packet(Kind::Answer, asked.number, asked.cookie, to);
                self.book.receive(to, &answer, now);
            }
            Ask::Inside { to, number } if world.inside => self.book.receive_echo(to, number, now),
            Ask::Outside { to, number } if world.outside => self.book.receive_echo(to, number, now),
            _ => {}
        }
    }

    fn verdict(&self) -> Verdict {
        let peer = &self.book.peers[&address(1)];
        Verdict::of(peer, self.book.interval(), self.book.can_echo, self.now)
    }
}

/// What the node with this address in the overlay sends.
fn packet(kind: Kind, number: u32, cookie: u64, node: IpAddr) -> Packet {
    let IpAddr::V4(ipv4) = node else {
        panic!("{node}")
    };
    let index = (ipv4.to_bits() - 0x0a01_0000) >> 8;
    let Target {
        subnet, public_ip, ..
    } = target(index);
    Packet {
        kind,
        is_plain: false,
        number,
        cookie,
        node: Identity { subnet, public_ip },
    }
}

#[track_caller]
fn ends_as(verdict: Verdict, world: World) {
    let mut sim = Sim::new(&targets(2));
    assert_eq!(sim.verdict(), Verdict::Unknown);
    sim.run(Duration::from_secs(40), world);
    assert_eq!(sim.verdict(), verdict);
    assert!(verdict.is_trouble() || matches!(verdict, Verdict::Healthy | Verdict::NoAgent));
    // Whatever it was, it is over when packets pass.
    sim.run(Duration::from_secs(20), WELL);
    assert_eq!(sim.verdict(), Verdict::Healthy);
}

#[test]
fn each_trouble_is_told_from_the_others() {
    let nothing = World::default();
    ends_as(Verdict::Healthy, WELL);
    ends_as(
        Verdict::PathMtu,
        World {
            large: false,
            ..WELL
        },
    );
    let mute = World {
        small: false,
        large: false,
        inside: false,
        plain: false,
        ..WELL
    };
    ends_as(Verdict::OneWay, mute);
    ends_as(
        Verdict::Blocked,
        World {
            asks: false,
            ..mute
        },
    );
    ends_as(Verdict::Unreachable, nothing);
    let stock = World {
        inside: true,
        outside: true,
        ..nothing
    };
    ends_as(Verdict::NoAgent, stock);
    let spoiled = World {
        small: false,
        large: false,
        ..WELL
    };
    ends_as(Verdict::Checksum, spoiled);
    ends_as(
        Verdict::OtherNode,
        World {
            other: true,
            ..WELL
        },
    );
}

#[test]
fn a_peer_whose_address_another_lease_has_is_a_duplicate_when_it_is_silent() {
    let mut targets = targets(1);
    targets.get_mut(&address(1)).unwrap().shared = true;
    let mut sim = Sim::new(&targets);
    sim.run(
        Duration::from_secs(40),
        World {
            outside: true,
            ..World::default()
        },
    );
    assert_eq!(sim.verdict(), Verdict::Duplicate);
}

#[test]
fn a_peer_that_loses_many_packets_is_lossy() {
    let mut sim = Sim::new(&targets(1));
    let lossy = World {
        lossy: true,
        ..WELL
    };
    sim.run(Duration::from_mins(2), lossy);
    assert_eq!(sim.verdict(), Verdict::Lossy);
}

#[test]
fn without_icmp_it_is_said_that_it_is_not_known() {
    let mut sim = Sim::new(&targets(1));
    sim.book.can_echo = false;
    sim.run(Duration::from_secs(40), World::default());
    assert_eq!(sim.verdict(), Verdict::Silent);
}

#[test]
fn an_answer_without_the_cookie_counts_for_nothing() {
    let mut sim = Sim::new(&targets(1));
    let asks = loop {
        let asks = sim.book.asks(sim.now, &mut sim.rng);
        if !asks.is_empty() {
            break asks;
        }
        sim.now += STEP;
    };
    let Some(Ask::Small { to, packet: asked }) = asks.first().copied() else {
        panic!("{asks:?}")
    };
    let forged = packet(Kind::Answer, asked.number, asked.cookie ^ 1, to);
    assert!(!sim.book.receive(to, &forged, sim.now));
    let stranger = packet(Kind::Answer, asked.number, asked.cookie, to);
    assert!(!sim.book.receive(address(50), &stranger, sim.now));
    assert_eq!(sim.book.small.answered, 0);
}

#[test]
fn strangers_get_no_answer_and_peers_few() {
    let mut sim = Sim::new(&targets(1));
    let question = packet(Kind::Question, 1, 1, address(1));
    let stranger = (0..100).any(|_| sim.book.receive(address(9), &question, sim.now));
    assert!(!stranger);
    let answers = (0..1000).filter(|_| sim.book.receive(address(1), &question, sim.now));
    assert!(answers.count() <= 10);
}

#[test]
fn no_second_has_more_than_50_packets_however_many_peers_there_are_and_all_are_asked() {
    for (world, minutes) in [(WELL, 5), (World::default(), 20)] {
        let mut sim = Sim::new(&targets(1000));
        sim.step = Duration::from_millis(100);
        sim.run(Duration::from_mins(minutes), world);
        let mut first = 0;
        for (at, sent) in sim.sent.iter().enumerate() {
            while sim.sent[first] + Duration::from_secs(1) <= *sent {
                first += 1;
            }
            assert!(at - first < 50, "{} packets in a second", at - first + 1);
        }
        let asked = |peer: &&super::book::Peer| !peer.window.is_empty();
        assert_eq!(sim.book.peers.values().filter(asked).count(), 1000);
    }
}

#[test]
fn peers_that_go_and_come_leave_nothing_behind() {
    let mut sim = Sim::new(&targets(100));
    sim.run(Duration::from_secs(30), WELL);
    for count in [50, 0, 100] {
        sim.book.want(&targets(count), sim.now, &mut sim.rng);
        sim.run(Duration::from_secs(30), WELL);
        assert_eq!(sim.book.peers.len(), usize::try_from(count).unwrap());
    }
    let told = Told::of(&sim.book, 0, &[], None, sim.now);
    assert!(
        told.peers.iter().all(|peer| peer.state == "healthy"),
        "{told:?}"
    );
}

#[test]
fn what_is_due_waits_no_longer_than_there_is_a_budget_for_it() {
    let gather = |count| Sim::new(&targets(count)).book.gather();
    assert_eq!(gather(10), Duration::from_micros(12_500));
    assert_eq!(gather(1_000), OFTEN);
    // Five questions a second, every second of them twice, and ten packets at a time.
    assert_eq!(gather(10_000), OFTEN);
}

#[test]
fn what_has_to_wait_for_the_budget_wakes_nobody_meanwhile() {
    let mut sim = Sim::new(&targets(1000));
    sim.run(Duration::from_mins(2), World::default());
    let end = sim.now + Duration::from_secs(10);
    let mut looks = 0;
    while let Some(due) = sim.book.due().filter(|due| *due < end) {
        sim.now = due.max(sim.now);
        sim.book.asks(sim.now, &mut sim.rng);
        looks += 1;
    }
    // Once for each packet, and once for each that was not answered.
    assert!(looks <= 600, "{looks} looks in 10 s");
}
