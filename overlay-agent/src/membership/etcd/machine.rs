//! What a node has of the machine it runs on: chance and time. A test brings its own, to repeat
//! what happened and to have one node's clock stand still.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rand::{SeedableRng as _, rngs::StdRng};

/// Of one life of the agent.
pub struct Machine {
    pub rng: StdRng,
    pub time: Box<dyn Time>,
}

/// A clock that stands still while the machine sleeps, and its timers.
pub trait Time: Send + Sync {
    fn now(&self) -> Instant;

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

struct Monotonic;

impl Time for Monotonic {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

impl Machine {
    /// The machine itself.
    pub fn real() -> Self {
        Self {
            rng: StdRng::from_os_rng(),
            time: Box::new(Monotonic),
        }
    }
}
