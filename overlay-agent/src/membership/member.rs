//! What the agent asks of whatever holds the leases.

use std::{
    error::Error,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use ipnetwork::{Ipv4Network, Ipv6Network};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::allocation::Allocation;
use crate::model::{ConfigText, LeaseAttrs, LeaseView, PerFamily, StoreError};

/// A way for nodes to know of each other. How a node comes to its subnet is the store's own affair:
/// some are asked for a free one, others assign it.
pub trait Membership: Send + Sync {
    /// The store, as messages call it.
    fn name(&self) -> &'static str;

    /// The network config; `None` when there is none.
    fn config(&self) -> BoxFuture<'_, Result<Option<ConfigText>, StoreError>>;

    /// Where the config is looked for, without secrets.
    fn config_place(&self) -> String;

    /// What is said while there is no config: where it was looked for, and what creates it.
    fn config_missing(&self) -> BoxFuture<'_, String>;

    /// What time it is at the store, if it says.
    fn clock(&self) -> BoxFuture<'_, Option<SystemTime>> {
        Box::pin(std::future::ready(None))
    }

    /// What nodes say of themselves, this one in an earlier life among them, as far as it can be
    /// understood.
    fn known(&self) -> BoxFuture<'_, Result<Vec<LeaseAttrs>, StoreError>>;

    /// The addresses that the store has this node advertise, as `--public-ip` and `--public-ipv6` would; known
    /// once [`Self::known`] has answered.
    fn told(&self) -> PerFamily<Option<Ipv4Addr>, Option<Ipv6Addr>> {
        PerFamily::default()
    }

    /// Gives this node its lease, and keeps it and follows all others until `stop` is cancelled; the
    /// store is left as it is then. `config` is the network config the daemon runs with. While the
    /// store does not answer, tries on. `None` when cancelled before there was a lease.
    fn join(
        &self,
        wish: Wish,
        config: ConfigText,
        stop: CancellationToken,
    ) -> BoxFuture<'_, Result<Option<Member>, JoinError>>;
}

/// What a starting node asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub attrs: LeaseAttrs,
    pub allocation: Allocation,
    /// `FLANNEL_SUBNET` of the subnet file; may have host bits.
    pub previous: Option<Ipv4Network>,
    /// `FLANNEL_IPV6_SUBNET` of the subnet file.
    pub previous6: Option<Ipv6Network>,
}

/// Why this node cannot have a lease, and waiting would not help.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct JoinError(#[from] Box<dyn Error + Send + Sync>);

/// A node with a lease.
#[derive(Debug)]
pub struct Member {
    /// The leases, from now on.
    pub view: watch::Receiver<LeaseView>,
    /// What the store says of this node, where it is the store that says it: the node is to become that.
    pub assigned: Option<LeaseAttrs>,
    orders: mpsc::UnboundedSender<Order>,
}

/// What a store is told by the node.
#[derive(Clone, Debug)]
pub enum Order {
    /// The own record is to say this, under the same key.
    Publish(LeaseAttrs),
    /// The daemon runs with this network config.
    InForce(ConfigText),
    /// The node has started: its pods can be reached.
    Started,
    /// The machine slept for so long: leases have aged, and connections may be dead.
    Slept(Duration),
}

impl Member {
    /// The end that the agent holds, and the end where its orders arrive.
    pub fn new(view: watch::Receiver<LeaseView>) -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let member = Self {
            view,
            assigned: None,
            orders,
        };
        (member, inbox)
    }

    /// Has the own record say this, under the same key.
    pub fn publish(&self, attrs: LeaseAttrs) {
        self.order(Order::Publish(attrs));
    }

    /// Tells that the daemon runs with this network config.
    pub fn in_force(&self, config: ConfigText) {
        self.order(Order::InForce(config));
    }

    /// Tells that the node has started.
    pub fn started(&self) {
        self.order(Order::Started);
    }

    /// Tells that the machine slept.
    pub fn slept(&self, time: Duration) {
        self.order(Order::Slept(time));
    }

    fn order(&self, order: Order) {
        // Nobody reads it once the store's task was cancelled; then nobody needs it.
        let _ = self.orders.send(order);
    }
}
