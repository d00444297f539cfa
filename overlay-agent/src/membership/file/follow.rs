//! Keeps the view of the leases as the file says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    cluster::Cluster,
    source::{PERIOD, Source},
};
use crate::{
    complaints::Complaints,
    membership::member::{Member, Order},
    model::{
        ConfigText, LeaseAttrs, LeaseKey, LeaseTable, LeaseView, OwnLease, OwnState, PeerLease,
        StoreState,
    },
};

/// What follows the file for one node.
pub struct Follower {
    source: Arc<Source>,
    own: LeaseKey,
    address: IpAddr,
    /// What the node says of itself.
    attrs: Arc<LeaseAttrs>,
    /// The leases of the others.
    peers: LeaseTable,
    /// The network config the daemon runs with.
    in_force: ConfigText,
    /// What was last complained about, so that each problem is logged once.
    complaints: Complaints,
}

impl Follower {
    pub fn new(source: Arc<Source>, own: PeerLease, in_force: ConfigText) -> Self {
        Self {
            source,
            own: own.key,
            address: own.attrs.node_ip(),
            attrs: own.attrs,
            peers: LeaseTable::default(),
            in_force,
            complaints: Complaints::default(),
        }
    }

    /// Begins to follow, from what the file said last.
    pub fn spawn(mut self, cluster: &Cluster, number: i64, stop: CancellationToken) -> Member {
        let (sender, view) = watch::channel(self.view(cluster, number));
        let (mut member, inbox) = Member::new(view);
        member.assigned = Some((*self.attrs).clone());
        info!(lease = %self.own, peers = cluster.nodes.len().saturating_sub(1), "lease read from the peers file");
        tokio::spawn(async move {
            stop.run_until_cancelled(self.run(sender, inbox)).await;
        });
        member
    }

    async fn run(
        &mut self,
        view: watch::Sender<LeaseView>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Publish(attrs)) => self.attrs = attrs.into(),
                    Some(Order::InForce(config)) => self.in_force = config,
                    Some(Order::Started | Order::Slept(_)) => {}
                },
                _ = period.tick() => {}
            }
            let next = match self.source.read().await {
                Ok(Some((cluster, number))) => Ok(self.view(&cluster, number)),
                Ok(None) => Err(self.source.missing()),
                Err(error) => Err(error.to_string()),
            };
            match next {
                Ok(next) => {
                    view.send_if_modified(|view| {
                        let changed = *view != next;
                        *view = next;
                        changed
                    });
                }
                Err(problem) => {
                    self.complain(&[format!("{problem}; the leases stay as they were")]);
                    view.send_if_modified(|view| {
                        let changed = view.store.last_error.as_ref() != Some(&problem);
                        view.store.connected = false;
                        view.store.last_error = Some(problem);
                        changed
                    });
                }
            }
        }
    }

    /// The leases as the file has them.
    fn view(&mut self, cluster: &Cluster, number: i64) -> LeaseView {
        let mut complaints = Vec::new();
        let path = self.source.place();
        let recorded = cluster.node(self.address);
        let state = match recorded {
            Some(node) if node.key == self.own => {
                if node.attrs != self.attrs {
                    complaints.push(format!(
                        "{path} says of this node {}, but it is {}; others go by the file: correct it there",
                        node.attrs.encode(),
                        self.attrs.encode()
                    ));
                }
                OwnState::Held
            }
            other => OwnState::Reassigned {
                to: other.map(|node| node.key),
            },
        };
        let (ours, theirs) = (&self.in_force, &cluster.config);
        if ours.text != *theirs {
            complaints.push(format!(
                "[network] of {path} differs from the network config in force; reload the daemon (SIGHUP) to \
                 apply what a running node can take over, or restart it"
            ));
        }
        let others = cluster.nodes.iter();
        let others = others.filter(|node| node.attrs.node_ip() != self.address);
        let mut peers = BTreeMap::new();
        for node in others {
            if node.key.overlaps(&self.own) {
                complaints.push(format!(
                    "{path} gives {} this node's subnet",
                    node.attrs.node_ip()
                ));
            } else {
                peers.insert(node.key.subnet(), node.clone());
            }
        }
        self.take(peers);
        let view = LeaseView {
            own: OwnLease {
                key: self.own,
                expires: None,
                reservation: true,
                state,
            },
            peers: self.peers.clone(),
            store: StoreState {
                connected: true,
                last_error: None,
                revision: number,
            },
            config: Some(ConfigText {
                text: cluster.config.clone(),
                mod_revision: number,
            }),
            alarms: BTreeSet::new(),
        };
        self.complain(&complaints);
        view
    }

    /// Takes over the leases of the others: those that differ from what they were.
    fn take(&mut self, wanted: BTreeMap<IpNetwork, PeerLease>) {
        let gone = |subnet: &&IpNetwork| !wanted.contains_key(*subnet);
        let gone: Vec<IpNetwork> = self.peers.keys().filter(gone).copied().collect();
        for subnet in &gone {
            self.peers.remove(subnet);
        }
        for (subnet, lease) in wanted {
            if self.peers.get(&subnet) != Some(&lease) {
                self.peers.insert(subnet, lease);
            }
        }
    }

    /// Logs what was not wrong before.
    fn complain(&mut self, problems: &[String]) {
        for problem in self.complaints.news(problems) {
            warn!("{problem}");
        }
    }
}
