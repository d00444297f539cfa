//! Who is asked when, and what came of it. No I/O, and no clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use rand::Rng;
use tokio::time::Instant;

use super::{
    budget::Budget,
    packet::{Identity, Kind, Packet},
};
use crate::ticks::OFTEN;

/// An answer that takes longer is none.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// A peer is asked once in this time, or in [`SHARE`] for each peer, if that is longer.
const INTERVAL: Duration = Duration::from_secs(5);
const SHARE: Duration = Duration::from_millis(200);
/// What is due within so small a part of the interval, and within [`OFTEN`], is done together: to wake costs more than to
/// send.
const GATHER: u32 = 400;
/// So many questions without an answer mean something. The first of them follow each other quickly.
pub const MISSES: u32 = 3;
/// Questions that are remembered of each peer.
const WINDOW: usize = 32;
/// Every so many rounds a question is as large as pods' packets.
const LARGE_EVERY: u32 = 2;

/// A peer's end of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub subnet: IpNetwork,
    pub public_ip: IpAddr,
    /// Another lease has the same address.
    pub shared: bool,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Small {
        to: IpAddr,
        packet: Question,
    },
    Large {
        to: IpAddr,
        packet: Question,
    },
    /// A small one without a UDP checksum.
    Plain {
        to: IpAddr,
        packet: Question,
    },
    /// ICMP echo through the overlay.
    Inside {
        to: IpAddr,
        number: u16,
    },
    /// ICMP echo to the node's own address.
    Outside {
        to: IpAddr,
        number: u16,
    },
}

/// What tells a question from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub number: u32,
    pub cookie: u64,
}

/// One kind of question to one peer.
#[derive(Clone, Debug, Default)]
pub struct Leg {
    asked: Option<(u32, u64, Instant)>,
    /// Since the last answer.
    pub misses: u32,
    pub answered: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct Peer {
    pub target: Target,
    pub small: Leg,
    pub large: Leg,
    pub plain: Leg,
    pub inside: Leg,
    pub outside: Leg,
    /// Round trips of the last small questions since it was out of reach; `None` for those without an answer.
    pub window: VecDeque<Option<Duration>>,
    /// When a question came from it.
    pub heard: Option<Instant>,
    /// Who answered.
    pub identity: Option<Identity>,
    due: Instant,
    rounds: u32,
}

/// How often what was asked, and whether there was an answer, since the agent was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub answered: u64,
    pub lost: u64,
}

/// All peers, by their addresses in the overlay.
#[derive(Debug)]
pub struct Book {
    pub peers: BTreeMap<IpAddr, Peer>,
    queue: BTreeSet<(Instant, IpAddr)>,
    waiting: VecDeque<(Instant, IpAddr)>,
    questions: Budget,
    /// There is no budget for questions before.
    broke_until: Instant,
    answers: Budget,
    number: u32,
    pub small: Count,
    pub large: Count,
    /// Whether ICMP can be sent.
    pub can_echo: bool,
}

impl Leg {
    fn ask(&mut self, number: u32, cookie: u64, now: Instant) {
        self.asked = Some((number, cookie, now));
    }

    /// The round trip, if this answers what was asked.
    fn answer(&mut self, number: u32, cookie: u64, now: Instant) -> Option<Duration> {
        let (_, _, at) = self
            .asked
            .filter(|(n, c, _)| (*n, *c) == (number, cookie))?;
        self.asked = None;
        self.misses = 0;
        self.answered = Some(now);
        Some(now.saturating_duration_since(at))
    }

    /// Whether there was none in time.
    fn expire(&mut self, now: Instant) -> bool {
        let is_over = |at: Instant| now.saturating_duration_since(at) >= PATIENCE;
        let expired = self.asked.is_some_and(|(_, _, at)| is_over(at));
        if expired {
            self.asked = None;
            self.misses = self.misses.saturating_add(1);
        }
        expired
    }

    /// Whether it is answered, as far as is known.
    pub fn works(&self) -> bool {
        self.answered.is_some() && self.misses < MISSES
    }

    pub fn fails(&self) -> bool {
        self.misses >= MISSES
    }
}

impl Book {
    pub fn new(now: Instant) -> Self {
        Self {
            peers: BTreeMap::new(),
            queue: BTreeSet::new(),
            waiting: VecDeque::new(),
            questions: Budget::new(now),
            broke_until: now,
            answers: Budget::new(now),
            number: 0,
            small: Count::default(),
            large: Count::default(),
            can_echo: true,
        }
    }

    /// Time between two rounds of one peer.
    pub fn interval(&self) -> Duration {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        INTERVAL.max(SHARE.saturating_mul(peers))
    }

    /// For how long what is due may wait for more. Where that is long, it waits for the next wake that there is anyway;
    /// any longer, and more would be due than may be sent at a time.
    pub fn gather(&self) -> Duration {
        match self.interval() / GATHER {
            short if short * 2 < OFTEN => short,
            _ => OFTEN,
        }
    }

    /// Takes over who the peers are. What is known of those that stay as they were is kept.
    pub fn want(&mut self, targets: &BTreeMap<IpAddr, Target>, now: Instant, rng: &mut impl Rng) {
        self.peers
            .retain(|address, _| targets.contains_key(address));
        let peers = &self.peers;
        self.queue
            .retain(|(_, address)| peers.contains_key(address));
        let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let spread = SHARE.saturating_mul(count);
        for (address, target) in targets {
            if let Some(peer) = self.peers.get_mut(address)
                && (peer.target.subnet, peer.target.public_ip) == (target.subnet, target.public_ip)
            {
                peer.target = *target;
                continue;
            }
            let due = now + spread.mul_f64(rng.random());
            if let Some(before) = self.peers.insert(*address, Peer::new(*target, due)) {
                self.queue.remove(&(before.due, *address));
            }
            self.queue.insert((due, *address));
        }
    }

    /// When there is something to do.
    pub fn due(&self) -> Option<Instant> {
        let first = self.queue.first();
        let first = first.map(|(due, _)| self.broke_until.max(*due));
        let waited = self.waiting.front().map(|(until, _)| *until);
        first.into_iter().chain(waited).min()
    }

    /// What is to be sent now to the peer whose turn it is; nothing when there is none.
    pub fn asks(&mut self, now: Instant, rng: &mut impl Rng) -> Vec<Ask> {
        self.expire(now, rng);
        let mut asks = Vec::new();
        let first = self.queue.first().copied();
        let Some((_, address)) = first.filter(|(due, _)| *due <= now && self.broke_until <= now)
        else {
            return asks;
        };
        if self.questions.take(now) {
            self.queue.pop_first();
            self.round(address, now, rng, &mut asks);
        } else {
            self.broke_until = self.questions.next();
        }
        asks
    }

    fn round(&mut self, address: IpAddr, now: Instant, rng: &mut impl Rng, asks: &mut Vec<Ask>) {
        let interval = self.interval().mul_f64(rng.random_range(0.75..1.25));
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.rounds = peer.rounds.wrapping_add(1);
        let mut question = |leg: &mut Leg| {
            self.number = self.number.wrapping_add(1);
            let cookie = rng.random();
            leg.ask(self.number, cookie, now);
            Question {
                number: self.number,
                cookie,
            }
        };
        asks.push(Ask::Small {
            to: address,
            packet: question(&mut peer.small),
        });
        let unanswered = peer.small.misses > 0;
        let is_large_due =
            peer.rounds.is_multiple_of(LARGE_EVERY) || (1..MISSES).contains(&peer.large.misses);
        if peer.small.works() && !unanswered && is_large_due && self.questions.take(now) {
            asks.push(Ask::Large {
                to: address,
                packet: question(&mut peer.large),
            });
        }
        if unanswered && self.questions.take(now) {
            asks.push(Ask::Plain {
                to: address,
                packet: question(&mut peer.plain),
            });
        }
        if unanswered && self.can_echo && self.questions.take(now) {
            let number = question(&mut peer.inside).echo_number();
            peer.inside.asked = Some((number.into(), 0, now));
            asks.push(Ask::Inside {
                to: address,
                number,
            });
        }
        if unanswered && self.can_echo && self.questions.take(now) {
            let number = question(&mut peer.outside).echo_number();
            peer.outside.asked = Some((number.into(), 0, now));
            let to = peer.target.public_ip;
            asks.push(Ask::Outside { to, number });
        }
        self.waiting.push_back((now + PATIENCE, address));
        self.set_due(address, now + interval);
    }

    /// Counts what was not answered in time. The first misses are followed up at once.
    fn expire(&mut self, now: Instant, rng: &mut impl Rng) {
        while let Some((until, address)) = self.waiting.front().copied() {
            if until > now {
                break;
            }
            self.waiting.pop_front();
            let Some(peer) = self.peers.get_mut(&address) else {
                continue;
            };
            let small = peer.small.expire(now);
            let large = peer.large.expire(now);
            peer.plain.expire(now);
            peer.inside.expire(now);
            peer.outside.expire(now);
            if small {
                self.small.lost += 1;
                peer.remember(None);
            }
            if large {
                self.large.lost += 1;
            }
            // What else is tried begins with the second question.
            let is_new = |missed: bool, leg: &Leg| missed && leg.misses <= MISSES;
            if is_new(small, &peer.small) || is_new(large, &peer.large) {
                let pause = PATIENCE.mul_f64(rng.random_range(0.25..0.75));
                self.set_due(address, now + pause);
            }
        }
    }

    fn set_due(&mut self, address: IpAddr, due: Instant) {
        if let Some(peer) = self.peers.get_mut(&address) {
            self.queue.remove(&(peer.due, address));
            peer.due = due;
            self.queue.insert((due, address));
        }
    }

    /// Takes a packet from an address in the overlay. Returns whether it is to be answered.
    pub fn receive(&mut self, from: IpAddr, packet: &Packet, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else {
            return false;
        };
        match packet.kind {
            Kind::Question | Kind::Survey => {
                peer.heard = Some(now);
                return self.answers.take(now);
            }
            // Who asked for it waits for it elsewhere.
            Kind::Report => return false,
            Kind::Answer => {}
        }
        let was_away = peer.small.fails();
        if let Some(took) = peer.small.answer(packet.number, packet.cookie, now) {
            // That it was out of reach was told meanwhile; it is no loss of the packets that pass now.
            if was_away {
                peer.window.clear();
            }
            self.small.answered += 1;
            // What else is tried tells something of the time without answers, and of no other.
            (peer.plain, peer.inside, peer.outside) = Default::default();
            peer.identity = Some(packet.node);
            peer.remember(Some(took));
        } else if peer
            .large
            .answer(packet.number, packet.cookie, now)
            .is_some()
        {
            self.large.answered += 1;
        } else {
            peer.plain.answer(packet.number, packet.cookie, now);
        }
        false
    }

    /// Takes an answer to an ICMP echo.
    pub fn receive_echo(&mut self, from: IpAddr, number: u16, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.inside.answer(number.into(), 0, now);
            return;
        }
        let outside = self.peers.values_mut();
        for peer in outside.filter(|peer| peer.target.public_ip == from) {
            peer.outside.answer(number.into(), 0, now);
        }
    }
}

impl Peer {
    fn new(target: Target, due: Instant) -> Self {
        Self {
            target,
            small: Leg::default(),
            large: Leg::default(),
            plain: Leg::default(),
            inside: Leg::default(),
            outside: Leg::default(),
            window: VecDeque::new(),
            heard: None,
            identity: None,
            due,
            rounds: 0,
        }
    }

    fn remember(&mut self, round_trip: Option<Duration>) {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(round_trip);
    }
}

impl Question {
    /// ICMP has room for so much of it.
    fn echo_number(self) -> u16 {
        let [.., high, low] = self.number.to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}
