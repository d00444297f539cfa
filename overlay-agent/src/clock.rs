//! Whether this node's clock and the lease store's tell the same time.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    membership::Membership,
    metrics::{Sheet, Source},
};

/// How often the store is asked.
const PERIOD: Duration = Duration::from_mins(5);
/// Clocks that are kept by NTP are much closer, and what the store says is only good to a second.
pub const TOLERATED_SECONDS: i64 = 10;

/// By how many seconds this node's clock is ahead of the store's, as was found last. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Mutex<Option<i64>>>);

impl Clock {
    pub fn ahead_seconds(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares until `stop` is cancelled.
    pub async fn run(
        self,
        store: Arc<dyn Membership>,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut was_wrong = false;
        loop {
            let asked = SystemTime::now();
            let there = store.clock().await;
            let ahead = there.map(|there| ahead(asked, there, SystemTime::now()));
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
            if let Some(seconds) = ahead {
                let is_wrong = seconds.abs() > TOLERATED_SECONDS;
                if is_wrong && !was_wrong {
                    warn!(
                        seconds,
                        "this node's clock is ahead of the lease store's (behind, if negative): certificates and \
                                    tokens may be refused"
                    );
                } else if was_wrong && !is_wrong {
                    info!("this node's clock and the lease store's agree again");
                }
                was_wrong = is_wrong;
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(PERIOD))
                .await
                .is_none()
            {
                return Ok(());
            }
        }
    }
}

impl Source for Clock {
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        sheet.gauge(
            "store_clock_ahead_seconds",
            "By how much this node's clock is ahead of the lease store's",
            self.ahead_seconds()
                .map(|seconds| ([("store", "etcd")], seconds)),
        )
    }
}

/// The store's clock was read between two readings of the own one.
fn ahead(before: SystemTime, there: SystemTime, after: SystemTime) -> i64 {
    let took = after.duration_since(before).unwrap_or_default();
    let here = before + took / 2;
    let (is_ahead, apart) = match here.duration_since(there) {
        Ok(apart) => (true, apart),
        Err(error) => (false, error.duration()),
    };
    let seconds = i64::try_from(apart.as_secs()).unwrap_or(i64::MAX);
    if is_ahead { seconds } else { -seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_request_is_compared() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(ahead(at(100), at(102), at(104)), 0);
        assert_eq!(ahead(at(200), at(102), at(204)), 100);
        assert_eq!(ahead(at(100), at(202), at(104)), -100);
        // The clock was set back meanwhile.
        assert_eq!(ahead(at(100), at(100), at(50)), 0);
    }
}
