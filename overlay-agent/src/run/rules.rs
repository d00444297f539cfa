//! The packet filter rules of a running node.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    config::FilterOptions,
    filter::{self, Filter, FilterError, FilterWatch, RulesetVersion, Settings, exec::Executor},
    health::{Condition, Readiness},
    lifecycle::Supervisor,
    subnet_env::Previous,
    ticks::OFTEN,
};

/// Legacy iptables announces no changes, and what a rule drops must end within a second even for
/// flows that the fast path carries.
const LEGACY_PERIOD: Duration = OFTEN;

/// The rules, kept in place by a task of their own.
pub struct Rules {
    /// Notifications of foreign changes.
    pub ruleset: watch::Receiver<RulesetVersion>,
    /// What runs the packet filter's commands, and knows them again as ours.
    pub executor: Executor,
    settings: watch::Sender<Settings>,
}

impl Rules {
    /// Installs the rules and keeps them. Failing to install masquerade rules is an error, as at
    /// flannel's start.
    pub async fn install(
        options: &FilterOptions,
        settings: Settings,
        previous: &Previous,
        supervisor: &Supervisor,
        readiness: &Readiness,
    ) -> Result<Self, FilterError> {
        let executor = Executor::from_env();
        let mut filter = Filter::open(settings.clone(), executor.clone()).await?;
        match filter.ensure().await {
            Ok(changes) => {
                for change in changes {
                    info!(%change, "packet filter");
                }
                readiness.satisfy(Condition::RulesInstalled);
            }
            Err(error) if options.ip_masq => return Err(error),
            Err(error) => warn!(%error, "packet filter rules are not in place, trying on"),
        }
        filter.remove_strays(&previous_networks(previous)).await;

        let filter_watch = FilterWatch::new(executor.clone(), LEGACY_PERIOD);
        let ruleset = filter_watch.subscribe();
        supervisor.spawn("packet filter notifications", {
            let filter_watch = filter_watch.clone();
            move |stop| {
                let filter_watch = filter_watch.clone();
                async move { filter_watch.run(stop).await }
            }
        });
        let (settings, wanted) = watch::channel(settings);
        let filter = Arc::new(tokio::sync::Mutex::new(filter));
        let readiness = readiness.clone();
        let resync = options.resync;
        supervisor.spawn("packet filter", {
            let changes = ruleset.clone();
            move |stop| {
                let (filter, wanted) = (Arc::clone(&filter), wanted.clone());
                let (changes, readiness) = (changes.clone(), readiness.clone());
                async move {
                    let mut filter = filter.lock().await;
                    filter::keep(&mut filter, wanted, changes, resync, &readiness, stop).await;
                    Ok::<(), std::convert::Infallible>(())
                }
            }
        });
        Ok(Self {
            ruleset,
            executor,
            settings,
        })
    }

    /// Has other rules from here on.
    pub fn want(&self, settings: Settings) {
        self.settings.send_if_modified(|wanted| {
            let changed = *wanted != settings;
            *wanted = settings;
            changed
        });
    }
}

/// Networks and subnets of an earlier run, whose rules must go if they differ.
fn previous_networks(previous: &Previous) -> Vec<filter::PodNetwork> {
    let ipv4 = previous.ipv4_network.zip(previous.ipv4_subnet);
    let ipv6 = previous.ipv6_network.zip(previous.ipv6_subnet);
    let ipv4 = ipv4.map(|(network, subnet)| filter::PodNetwork::v4(network, subnet));
    let ipv6 = ipv6.map(|(network, subnet)| filter::PodNetwork::v6(network, subnet));
    ipv4.into_iter().chain(ipv6).collect()
}
