//! Many seeds.

use std::{
    env,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    run::{Outcome, run},
    tally::Tally,
};

/// Seeds of a normal run.
const SEEDS: u64 = 200;

/// Seeds that have shown a defect.
const FAILED_ONCE: &[u64] = &[1386, 1522, 2868];

/// What a normal run must have seen at least once.
const SEEN: [&str; 35] = [
    "a stranger's reservation",
    "agents killed in the middle of a request",
    "an operator changed the record",
    "another subnet is reserved for it",
    "compaction",
    "cut off from etcd",
    "etcd goes away",
    "etcd loses its data",
    "etcd restarted",
    "it gets another address",
    "it has another node's address",
    "its record becomes a reservation",
    "its record becomes junk",
    "its record is deleted",
    "its record is of no address",
    "junk keys and values",
    "leases acquired",
    "machine sleeps",
    "members lag",
    "nodes with a lease in the end",
    "pairs of holders compared",
    "requests carried out after the client gave up",
    "requests carried out by two members",
    "requests carried out without an answer",
    "requests lost on their way",
    "requests refused",
    "reservations written by their nodes",
    "restarted without its subnet file",
    "stock nodes that took a subnet",
    "subnets lost with a reason",
    "the lease ran out",
    "the pool of subnets is changed",
    "views compared with the store in the end",
    "views of a subnet that another node has taken",
    "watches behind a compaction",
];

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Fails with everything that happened, if it was not right.
fn pass(seed: u64, outcome: &Outcome) {
    let Some(violation) = &outcome.violation else {
        return;
    };
    let trace = run(seed, true).trace.join("\n");
    panic!("{trace}\n\nseed {seed}: {violation}\nrepeat with OVERLAY_MODEL_SEED={seed}");
}

/// Runs seeds on all CPUs. What was seen, and the seeds that failed.
fn run_all(seeds: &[u64]) -> (Tally, Vec<(u64, String)>) {
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(*seed, false);
                    tally.lock().unwrap().add(&outcome.tally);
                    if let Some(violation) = outcome.violation {
                        failed.lock().unwrap().push((*seed, violation));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    (tally.into_inner().unwrap(), failed)
}

#[test]
fn whatever_happens_no_subnet_has_two_holders_and_every_node_ends_with_one() {
    if let Some(seed) = number("OVERLAY_MODEL_SEED") {
        let outcome = run(seed, true);
        println!("{}\n\n{}", outcome.trace.join("\n"), outcome.tally);
        return pass(seed, &outcome);
    }
    let count = number("OVERLAY_MODEL_SEEDS").unwrap_or(SEEDS);
    let seeds: Vec<_> = FAILED_ONCE.iter().copied().chain(0..count).collect();
    let (tally, failed) = run_all(&seeds);
    println!("{} seeds:\n{tally}", seeds.len());
    for (seed, violation) in &failed {
        println!("seed {seed}: {violation}");
    }
    if let Some((seed, _)) = failed.first() {
        pass(*seed, &run(*seed, false));
    }
    let unseen: Vec<_> = SEEN
        .into_iter()
        .filter(|what| tally.of(what) == 0)
        .collect();
    assert!(unseen.is_empty() || count < SEEDS, "never seen: {unseen:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..5 {
        let (one, other) = (run(seed, true), run(seed, true));
        assert!(one.trace.len() > 100, "{seed}");
        for (line, again) in one.trace.iter().zip(&other.trace) {
            assert_eq!(line, again, "seed {seed}");
        }
        assert_eq!(one.trace.len(), other.trace.len(), "seed {seed}");
    }
}
