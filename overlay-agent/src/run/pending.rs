//! When what is dirty is settled: the first event at once, what comes while something is being settled
//! as one batch afterwards, and a storm of leases as one batch when it is over. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::changes::Dirty;

/// While there is something to do whenever a batch is done, the next ones wait this long for more, and
/// each four times as long as the last,
const FIRST_GAP: Duration = Duration::from_millis(2);
/// up to this.
const LONGEST_GAP: Duration = Duration::from_millis(40);

/// As many leases that wait for the same batch are a storm: more than come at once while nothing special happens,
pub const STORM: usize = 32;
/// and it is over once none came for this long, which is more than a store takes to hand out the next ones,
const CALM: Duration = Duration::from_millis(10);
/// or after this.
const LONGEST_STORM: Duration = Duration::from_millis(100);

/// What is dirty, and when it is due.
#[derive(Default)]
pub struct Pending {
    dirty: Dirty,
    due: Option<Instant>,
    gap: Duration,
    /// When the last batch was done.
    done: Option<Instant>,
    storm: Option<Storm>,
}

/// When leases of a storm first came, and last.
struct Storm {
    first: Instant,
    last: Instant,
}

impl Storm {
    fn over(&self) -> Instant {
        (self.last + CALM).min(self.first + LONGEST_STORM)
    }
}

impl Pending {
    /// Has what is dirty settled soon.
    pub fn mark(&mut self, dirty: Dirty, now: Instant) {
        self.mark_for(dirty, now);
    }

    /// Has what failed tried again at `due`, or with what is settled sooner.
    pub fn mark_for(&mut self, dirty: Dirty, due: Instant) {
        if dirty.any() {
            self.dirty |= dirty;
            self.due = Some(self.due.map_or(due, |before| before.min(due)));
        }
    }

    /// More leases came, and [`STORM`] or more wait now.
    pub fn storm(&mut self, now: Instant) {
        let storm = self.storm.get_or_insert(Storm {
            first: now,
            last: now,
        });
        storm.last = now;
    }

    /// When the next batch is due.
    pub fn due(&self) -> Option<Instant> {
        let due = self.due?;
        let due = self.done.map_or(due, |done| due.max(done + self.gap));
        // What else there is to settle does not wait for leases.
        let storm = self.storm.as_ref().filter(|_| self.dirty == Dirty::MAPS);
        Some(storm.map_or(due, |storm| due.max(storm.over())))
    }

    /// Whether the next batch ends with a flush.
    pub fn will_flush_after(&self) -> bool {
        self.dirty.flush_after
    }

    /// Hands out the batch.
    pub fn take(&mut self) -> Dirty {
        let waited = self
            .due
            .zip(self.done)
            .is_some_and(|(due, done)| due < done + self.gap);
        self.gap = if waited {
            (self.gap * 4).clamp(FIRST_GAP, LONGEST_GAP)
        } else {
            Duration::ZERO
        };
        self.due = None;
        self.storm = None;
        std::mem::take(&mut self.dirty)
    }

    /// The batch is done.
    pub fn done(&mut self, now: Instant) {
        self.done = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn peers() -> Dirty {
        Dirty {
            tiers: true,
            ..Dirty::default()
        }
    }

    #[test]
    fn an_event_that_finds_nothing_under_way_is_settled_at_once_again_and_again() {
        let mut pending = Pending::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            pending.mark(peers(), now);
            assert_eq!(pending.due(), Some(now));
            assert_eq!(pending.take(), peers());
            pending.done(now + MILLISECOND);
            now += MILLISECOND * 3 / 2;
        }
    }

    #[test]
    fn after_a_burst_the_next_event_is_settled_at_once() {
        let mut pending = Pending::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            pending.mark(peers(), now);
            now = pending.due().unwrap();
            pending.take();
            pending.mark(peers(), now);
            pending.done(now + MILLISECOND);
        }
        now = pending.due().unwrap();
        pending.take();
        pending.done(now + MILLISECOND);
        now += LONGEST_GAP + MILLISECOND;
        pending.mark(peers(), now);
        assert_eq!(pending.due(), Some(now));
    }

    #[test]
    fn what_comes_meanwhile_is_one_batch_at_once_afterwards() {
        let mut pending = Pending::default();
        let now = Instant::now();
        pending.mark(peers(), now);
        pending.take();
        pending.mark(peers(), now);
        pending.mark(
            Dirty {
                pods: true,
                ..Dirty::default()
            },
            now,
        );
        pending.done(now + MILLISECOND);
        assert_eq!(pending.due(), Some(now + MILLISECOND));
        let batch = pending.take();
        assert!(batch.pods && batch.tiers);
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn an_endless_burst_is_settled_in_few_batches() {
        let mut pending = Pending::default();
        let start = Instant::now();
        let (mut now, mut batches) = (start, 0);
        while now < start + Duration::from_secs(1) {
            pending.mark(peers(), now);
            if pending.due().is_some_and(|due| due <= now) {
                pending.take();
                batches += 1;
                pending.mark(peers(), now);
                now += MILLISECOND;
                pending.done(now);
            }
            now += MILLISECOND / 4;
        }
        assert!((20..=35).contains(&batches), "{batches}");
    }

    #[test]
    fn a_storm_of_leases_is_one_batch_when_it_is_over() {
        let mut pending = Pending::default();
        let start = Instant::now();
        for response in 0..10 {
            let now = start + MILLISECOND * 5 * response;
            assert!(pending.due().is_none_or(|due| due > now));
            pending.mark(Dirty::MAPS, now);
            pending.storm(now);
        }
        assert_eq!(pending.due(), Some(start + MILLISECOND * 45 + CALM));
        assert_eq!(pending.take(), Dirty::MAPS);
        // The next lease finds nothing under way.
        let later = start + MILLISECOND * 60;
        pending.done(later);
        pending.mark(Dirty::MAPS, later);
        assert_eq!(pending.due(), Some(later));
    }

    #[test]
    fn a_storm_without_an_end_and_what_else_happens_wait_no_longer() {
        let mut pending = Pending::default();
        let start = Instant::now();
        let mut now = start;
        while now < start + Duration::from_secs(1) {
            pending.mark(Dirty::MAPS, now);
            pending.storm(now);
            now += MILLISECOND;
        }
        assert_eq!(pending.due(), Some(start + LONGEST_STORM));
        let mut pending = Pending::default();
        pending.mark(Dirty::MAPS, start);
        pending.storm(start);
        assert_eq!(pending.due(), Some(start + CALM));
        pending.mark(peers(), start + MILLISECOND);
        assert_eq!(pending.due(), Some(start));
    }

    #[test]
    fn what_failed_waits_unless_something_is_settled_sooner() {
        let mut pending = Pending::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        pending.mark_for(peers(), later);
        assert_eq!(pending.due(), Some(later));
        pending.mark(Dirty::default(), now);
        assert_eq!(pending.due(), Some(later));
        pending.mark(peers(), now);
        assert_eq!(pending.due(), Some(now));
    }
}
