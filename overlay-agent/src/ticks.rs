//! Ticks that come together: each time an idle node wakes costs more than most of what it then looks at, so whatever
//! looks again and again does so at the same moments.

use std::{sync::LazyLock, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// The shortest period there is: an idle agent wakes so often.
pub const OFTEN: Duration = Duration::from_millis(500);

/// What all moments are counted from. It is another one in each process, so that nodes do not keep step.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A tick at once, and then one every `period`, at the moments of all others whose period divides this one. Whoever is
/// late waits for the next moment.
pub fn together(period: Duration) -> Interval {
    let now = Instant::now();
    let mut ticks = interval_at(now - since_last(now, period), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// The first of those moments that is not before `at`.
pub fn not_before(at: Instant, period: Duration) -> Instant {
    match since_last(at, period) {
        Duration::ZERO => at,
        since => at + period.saturating_sub(since),
    }
}

/// The time from the last of the moments to `at`; less than `period`.
fn since_last(at: Instant, period: Duration) -> Duration {
    let since = at.saturating_duration_since(*BEGINNING).as_nanos();
    let rest = since.checked_rem(period.as_nanos()).unwrap_or(0);
    u64::try_from(rest).map_or(Duration::ZERO, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    const LONG: Duration = Duration::from_secs(1);
    const SHORT: Duration = Duration::from_millis(500);

    async fn moments<const COUNT: usize>(ticks: &mut Interval) -> [Instant; COUNT] {
        let mut moments = [Instant::now(); COUNT];
        for moment in &mut moments {
            *moment = ticks.tick().await;
        }
        moments
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_of_whoever_began_when_come_at_the_same_moments() {
        advance(Duration::from_millis(123)).await;
        let mut long = together(LONG);
        long.tick().await;
        sleep(Duration::from_millis(271)).await;
        let mut short = together(SHORT);
        short.tick().await;
        let (rare, often) = tokio::join!(moments::<3>(&mut long), moments::<6>(&mut short));
        for moment in rare {
            assert!(often.contains(&moment), "{rare:?}, {often:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_tick_comes_at_once_and_one_that_is_missed_does_not_shift_the_others() {
        let mut ticks = together(LONG);
        let begun = Instant::now();
        ticks.tick().await;
        assert_eq!(Instant::now(), begun);
        let first = ticks.tick().await;
        sleep(Duration::from_millis(2_300)).await;
        ticks.tick().await;
        assert_eq!(ticks.tick().await, first + LONG * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_its_own_and_what_is_between_two_waits_for_the_second() {
        let at = not_before(Instant::now() + LONG, SHORT);
        assert_eq!(not_before(at, SHORT), at);
        let between = at + Duration::from_nanos(1);
        assert_eq!(not_before(between, SHORT), at + SHORT);
        assert_eq!(not_before(between, Duration::ZERO), between);
    }
}
