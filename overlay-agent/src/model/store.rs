//! What every store of leases has, whatever it is.

use thiserror::Error;

/// The text of the network config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigText {
    pub text: String,
    pub mod_revision: i64,
}

/// Why a store did not do what was asked, in its own words. It may go away by itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct StoreError {
    pub reason: String,
}

/// The connection to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Changes arrive as they happen.
    pub connected: bool,
    /// Why they do not, or did not for a while.
    pub last_error: Option<String>,
    /// Everything up to here is in the view.
    pub revision: i64,
}
