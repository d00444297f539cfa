//! What is known of the peers, for `overlay-agent peers`.

use std::{io, net::IpAddr, time::Duration};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    book::{Book, Peer},
    own::Own,
    verdict::Verdict,
};
use crate::inquiry::{Served, Subject};

const SUBJECT: Subject = Subject("overlay-agent/peers");

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Why nobody is asked; `None` (JSON `null`) if everybody is.
    pub idle: Option<String>,
    /// Time between two questions to a peer.
    pub interval_seconds: f64,
    /// The UDP port that peers are asked at.
    pub port: u16,
    /// This node's ends of the overlay.
    pub own: Vec<Own>,
    pub peers: Vec<ToldPeer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToldPeer {
    pub subnet: IpNetwork,
    /// Where it is asked.
    pub address: IpAddr,
    pub public_ip: IpAddr,
    pub state: String,
    pub trouble: bool,
    pub meaning: String,
    /// Since it answered a probe; `None` (JSON `null`) if it never did.
    pub answered_seconds_ago: Option<f64>,
    /// Since it asked this node.
    pub asked_seconds_ago: Option<f64>,
    /// Of the questions below.
    pub rtt_p50_ms: Option<f64>,
    pub rtt_p99_ms: Option<f64>,
    pub loss_percent: Option<f64>,
    /// Questions that the numbers are of.
    pub questions: usize,
    /// Who answered, if it is not whom the lease names: subnet and public IP.
    pub answered_by: Option<(IpNetwork, IpAddr)>,
}

/// Answers as long as the result is kept.
pub fn serve(tell: impl Fn() -> Told + Send + 'static) -> io::Result<Served> {
    SUBJECT.serve(tell)
}

/// What the agent says; `None` if none runs that asks its peers.
pub fn ask() -> io::Result<Option<Told>> {
    SUBJECT.ask()
}

impl Told {
    pub fn of(book: &Book, port: u16, own: &[Own], idle: Option<String>, now: Instant) -> Self {
        let interval = book.interval();
        let peers = book.peers.iter();
        Self {
            idle,
            interval_seconds: interval.as_secs_f64(),
            port,
            own: own.to_vec(),
            peers: peers
                .map(|(address, peer)| {
                    let verdict = Verdict::of(peer, interval, book.can_echo, now);
                    ToldPeer::of(*address, peer, verdict, now)
                })
                .collect(),
        }
    }
}

impl ToldPeer {
    fn of(address: IpAddr, peer: &Peer, verdict: Verdict, now: Instant) -> Self {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let trips = sorted_trips(peer);
        let answered_by = peer.identity.map(|node| (node.subnet, node.public_ip));
        let expected = (peer.target.subnet, peer.target.public_ip);
        Self {
            subnet: peer.target.subnet,
            address,
            public_ip: peer.target.public_ip,
            state: verdict.name().to_owned(),
            trouble: verdict.is_trouble(),
            meaning: verdict.describe().to_owned(),
            answered_seconds_ago: peer.small.answered.map(ago),
            asked_seconds_ago: peer.heard.map(ago),
            rtt_p50_ms: quantile(&trips, 50).map(milliseconds),
            rtt_p99_ms: quantile(&trips, 99).map(milliseconds),
            loss_percent: loss(peer),
            questions: peer.window.len(),
            answered_by: answered_by.filter(|by| *by != expected),
        }
    }
}

/// The round trips that there were, the shortest first.
pub fn sorted_trips(peer: &Peer) -> Vec<Duration> {
    let mut trips: Vec<Duration> = peer.window.iter().copied().flatten().collect();
    trips.sort_unstable();
    trips
}

pub fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let at = (sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?);
    sorted.get(at).copied()
}

fn milliseconds(time: Duration) -> f64 {
    let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1000.0
}

fn loss(peer: &Peer) -> Option<f64> {
    let all = u32::try_from(peer.window.len())
        .ok()
        .filter(|all| *all > 0)?;
    let lost = peer.window.iter().filter(|trip| trip.is_none()).count();
    Some(f64::from(u32::try_from(lost).ok()?) * 100.0 / f64::from(all))
}
