//! The peers' health as metrics: numbers of peers, and nothing about one of them.

use std::{collections::BTreeMap, fmt, time::Duration};

use tokio::time::Instant;

use super::{
    book::Book,
    told::{quantile, sorted_trips},
    verdict::Verdict,
};
use crate::metrics::Sheet;

pub fn tell(book: &Book, now: Instant, sheet: &mut Sheet<'_>) -> fmt::Result {
    let interval = book.interval();
    let mut states: BTreeMap<Verdict, u32> = Verdict::ALL.map(|verdict| (verdict, 0)).into();
    let mut trips: Vec<Duration> = Vec::new();
    for peer in book.peers.values() {
        let verdict = Verdict::of(peer, interval, book.can_echo, now);
        *states.entry(verdict).or_default() += 1;
        trips.extend(quantile(&sorted_trips(peer), 50));
    }
    sheet.gauge(
        "peer_health",
        "Ends of peers in the overlay, by how they answer",
        { states.iter() }.map(|(verdict, count)| ([("state", verdict.name())], *count)),
    )?;
    trips.sort_unstable();
    let quantiles = [("0", 0), ("0.5", 50), ("0.99", 99), ("1", 100)];
    let times = quantiles.into_iter().filter_map(|(name, percent)| {
        let time = quantile(&trips, percent)?;
        Some(([("quantile", name)], time.as_secs_f64()))
    });
    sheet.gauge(
        "peer_round_trip_seconds",
        "Round trips through the overlay: of the nearest peer, the middle one, and the farthest ones. Each has the \
         middle one of its last 32",
        times,
    )?;
    let counts = [("small", book.small), ("large", book.large)];
    sheet.counter(
        "peer_probes",
        "Questions to peers, by size and by whether there was an answer within a second",
        counts.into_iter().flat_map(|(size, count)| {
            [("answered", count.answered), ("lost", count.lost)]
                .map(|(result, count)| ([("size", size), ("result", result)], count))
        }),
    )
}
