//! Health: what has to hold for this node to be ready, and the HTTP endpoints that tell.
//!
//! flannel's `/readyz` turns ready once, when the subnet file is written. Here readiness is a set
//! of conditions, each with the reason why it does not hold, and it goes back to not ready when
//! one of them stops holding.

mod readiness;
mod server;

pub use self::{
    readiness::{Condition, Readiness, Unmet},
    server::{HealthError, HealthServer},
};
