//! Leases in the Nodes of a Kubernetes cluster (`--kube-subnet-mgr`): the controller manager gives each its
//! podCIDRs, annotations say the rest, with flannel's names and texts.

mod annotations;
mod api;
mod client;
mod config_file;
#[cfg(test)]
mod fake;
mod feed;
mod follow;
mod node;
mod nodes;
#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use rand::Rng as _;
use tokio::{sync::OnceCell, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use self::annotations::PrefixError;
use self::{
    annotations::Prefix,
    api::{ApiError, Listing, NodeApi},
    client::Server,
    config_file::ConfigFile,
    follow::{Follower, Joined},
    node::{Node, annotate},
};
use super::{
    member::{JoinError, Member, Membership, Wish},
    wait,
};
use crate::{
    config::options::{KubernetesOptions, NodeIdentity},
    model::{ConfigText, LeaseAttrs, LeaseKey, PerFamily, StoreError},
};

/// What is waited, at least, for a Node to get its podCIDR, and for an API server that refused a request.
const PAUSE: Duration = Duration::from_secs(2);

/// Membership by the Nodes of a cluster.
pub struct Kubernetes {
    api: Arc<Server>,
    prefix: Prefix,
    config_file: Arc<ConfigFile>,
    identity: NodeIdentity,
    name: OnceCell<String>,
    set_condition: bool,
    /// What was listed last.
    listed: Mutex<Option<Listing>>,
}

/// A lease, and the cluster around it.
struct Acquired {
    key: LeaseKey,
    node: Node,
    listing: Listing,
}

impl Kubernetes {
    /// Checks the options; does not connect.
    pub fn new(options: &KubernetesOptions) -> Result<Self, StoreError> {
        let refused = |reason: String| StoreError { reason };
        let prefix = Prefix::new(&options.annotation_prefix)
            .map_err(|error| refused(format!("--kube-annotation-prefix: {error}")))?;
        let identity = options.node.clone().ok_or_else(|| {
            refused(
                "which Node is this? Set the environment variable NODE_NAME, or POD_NAME and POD_NAMESPACE"
                    .to_owned(),
            )
        })?;
        Ok(Self {
            api: Arc::new(Server::new(options.clone(), prefix.clone())),
            prefix,
            config_file: Arc::new(ConfigFile::new(&options.net_config_path)),
            identity,
            name: OnceCell::new(),
            set_condition: options.set_node_network_unavailable,
            listed: Mutex::default(),
        })
    }

    /// The name of this node's Node.
    async fn name(&self) -> Result<&String, ApiError> {
        let find = || async {
            match &self.identity {
                NodeIdentity::Name(name) => Ok(name.clone()),
                NodeIdentity::Pod { namespace, name } => {
                    let found = self.api.node_of_pod(namespace, name).await;
                    found.map_err(|error| {
                        ApiError::Failed(format!(
                            "error retrieving pod spec for '{namespace}/{name}': {error}"
                        ))
                    })
                }
            }
        };
        self.name.get_or_try_init(find).await
    }

    fn listed(&self) -> MutexGuard<'_, Option<Listing>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn list(&self) -> Result<Vec<LeaseAttrs>, ApiError> {
        self.name().await?;
        let listing = Listing::read(&*self.api).await?;
        let nodes = listing.nodes.iter();
        let attrs = nodes
            .filter(|node| node.said.is_managed())
            .map(|node| node.said.attrs())
            .collect();
        *self.listed() = Some(listing);
        Ok(attrs)
    }

    /// The lease of this node, with its annotations written.
    async fn acquire(&self, wish: &Wish) -> Result<Acquired, String> {
        let name = self.name().await.map_err(|error| error.to_string())?;
        let node = self
            .api
            .node(name)
            .await
            .map_err(|error| error.to_string())?;
        let mut node = node.ok_or_else(|| {
            format!("there is no node {name:?}: the kubelet registers it; or NODE_NAME says another name than it")
        })?;
        let key = node.own_key(&wish.allocation)?;
        let missing = self.prefix.missing(&node.said, &wish.attrs);
        if !missing.is_empty() {
            let written = self.api.patch(name, &annotate(&missing)).await;
            node = written.map_err(|error| error.to_string())?;
        }
        let listed = self.listed().take();
        let listing = if let Some(listing) = listed {
            listing
        } else {
            let listing = Listing::read(&*self.api).await;
            listing.map_err(|error| error.to_string())?
        };
        Ok(Acquired { key, node, listing })
    }
}

/// What failed is not tried again at once, nor by all nodes at the same time.
async fn rest() {
    let pause = PAUSE.mul_f64(rand::rng().random_range(0.5..1.5));
    sleep(pause).await;
}

impl Membership for Kubernetes {
    fn name(&self) -> &'static str {
        "the Kubernetes API"
    }

    fn config(&self) -> BoxFuture<'_, Result<Option<ConfigText>, StoreError>> {
        Box::pin(self.config_file.read())
    }

    fn config_place(&self) -> String {
        self.config_file.place()
    }

    fn config_missing(&self) -> BoxFuture<'_, String> {
        Box::pin(async { self.config_file.missing() })
    }

    fn known(&self) -> BoxFuture<'_, Result<Vec<LeaseAttrs>, StoreError>> {
        Box::pin(async {
            let listed = self.list().await;
            if listed.is_err() {
                rest().await;
            }
            Ok(listed?)
        })
    }

    fn told(&self) -> PerFamily<Option<Ipv4Addr>, Option<Ipv6Addr>> {
        let listed = self.listed();
        let nodes = listed.iter().flat_map(|listing| &listing.nodes);
        let own = nodes.filter(|node| Some(&node.name) == self.name.get());
        own.map(|node| node.said.told()).next().unwrap_or_default()
    }

    fn join(
        &self,
        wish: Wish,
        config: ConfigText,
        stop: CancellationToken,
    ) -> BoxFuture<'_, Result<Option<Member>, JoinError>> {
        Box::pin(async move {
            let attempt = || async {
                let acquired = self.acquire(&wish).await;
                if acquired.is_err() {
                    rest().await;
                }
                acquired
            };
            let acquired = wait::until_done(&stop, attempt, |problem| {
                error!("no subnet for this node yet: {problem}");
            });
            let Some(Acquired { key, node, listing }) = acquired.await else {
                return Ok(None);
            };
            let joined = Joined {
                api: Arc::clone(&self.api),
                prefix: self.prefix.clone(),
                config_file: Arc::clone(&self.config_file),
                own: key,
                node,
                attrs: wish.attrs,
                network: wish.allocation,
                in_force: config,
                set_condition: self.set_condition,
            };
            Ok(Some(Follower::spawn(joined, listing, stop.clone())))
        })
    }
}
