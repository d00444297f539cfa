//! What of a backend runs in the agent, where kernel objects alone do not do.

use std::future::ready;

use futures::future::{BoxFuture, FutureExt as _};

use super::BackendError;
use crate::model::{DesiredNode, PeerLease, PerFamily};

/// What a lease says for a backend: `BackendData` and `BackendV6Data`.
pub type LeaseData = PerFamily<Option<String>>;

/// What runs of a backend. One node has one, for both families.
pub trait Runtime: Send {
    /// Once, before the node has a lease. Returns what the lease is to say for the backend, beside what
    /// [`Kind::lease_data`](super::Kind::lease_data) says of a device.
    fn prepare(
        &mut self,
        serves: PerFamily<bool>,
    ) -> BoxFuture<'_, Result<LeaseData, BackendError>>;

    /// Has what runs be as the node and its peers are, after a change and now and then. Returns what is
    /// not as it should be; then it is called again soon. It is cut off when the job of the settler is.
    fn keep<'a>(&'a mut self, scene: &'a Scene) -> BoxFuture<'a, Vec<String>>;

    /// Whether the programs carry what they can, as far as is known before [`Self::keep`] is called.
    fn heed_programs(&mut self, _are_fast: bool) {}

    /// The agent was told to stop. Forwarding goes on without it.
    fn end(&mut self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// What there is to be kept.
#[derive(Clone, Debug)]
pub struct Scene {
    pub node: DesiredNode,
    /// The lease is this node's, as far as is known: no other node has it, and no other is meant for this one.
    pub holds_lease: bool,
    /// The leases of the nodes with this backend.
    pub leases: Vec<PeerLease>,
}
