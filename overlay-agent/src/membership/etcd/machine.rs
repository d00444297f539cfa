//! What a node has of the machine it runs on: chance and time. A test brings its own, to repeat
//! what happened and to let one node's clock stand still.

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

/// Of one life of the agent.
pub struct Machine {
    pub rng: StdRng,
    /// A clock that stands still while the machine sleeps, as timers do.
    pub clock: Box<dyn Fn() -> std::time::Instant + Send + Sync>,
}

impl Machine {
    /// The machine itself.
    pub fn real() -> Self {
        Self {
            rng: StdRng::from_os_rng(),
            clock: Box::new(|| Instant::now().into_std()),
        }
    }

    pub fn now(&self) -> std::time::Instant {
        (self.clock)()
    }
}
