//! From nothing to a running node, in flannel's order: config, interface, device, lease, rules,
//! routes, subnet file.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use overlay_common::addr::MacAddr;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{changes::Dirty, controller::Controller, convert, tier1::Tier1};
use crate::{
    config::{DaemonOptions, NetworkConfig, ParsedNetworkConfig},
    core::{Allocation, Renewal, Wish},
    filter::{self, Filter, FilterWatch, RulesetVersion, exec::Executor},
    health::{Condition, Readiness},
    lease::{self, Deadlines, EtcdStore, LeaseHandle, LeaseStore as _},
    lifecycle::Supervisor,
    model::{Backend, Desired, LocalNode, Underlay},
    netlink::{Netlink, VtepSpec, Watch},
    subnet_env::{Ipv4Lines, Previous, SubnetEnv},
    underlay::{self, Families},
};

/// Life of a lease, as flannel's.
const LEASE_TTL: Duration = Duration::from_hours(24);

/// Legacy iptables announces no changes, and what a rule drops must end within a second even for
/// flows that the fast path carries.
const LEGACY_PERIOD: Duration = Duration::from_millis(500);

/// A running node.
pub struct Daemon {
    pub controller: Controller,
    pub watch: Watch,
    pub leases: LeaseHandle,
    pub ruleset: watch::Receiver<RulesetVersion>,
    pub readiness: Readiness,
    options: DaemonOptions,
    config: NetworkConfig,
    subnet_env: SubnetEnv,
}

impl Daemon {
    /// Starts the node. `None` if `stop` was cancelled meanwhile.
    pub async fn start(
        options: &DaemonOptions,
        supervisor: &Supervisor,
        readiness: &Readiness,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let previous = read_previous(options);
        let store = Arc::new(EtcdStore::new(options.etcd.clone(), Deadlines::default())?);
        let parse = |text: &str| NetworkConfig::parse(text.as_bytes());
        let Some((parsed, config_text)) = lease::await_config(&*store, stop, parse).await else {
            return Ok(None);
        };
        let ParsedNetworkConfig { config, warnings } = parsed;
        for warning in warnings {
            warn!("network config: {warning}");
        }
        let allocation = match Allocation::of(&config) {
            Some(allocation) if allocation.ipv6.is_none() => allocation,
            _ => bail!(
                "the network config asks for IPv6 pods (EnableIPv6), which this agent does not \
                 serve; use stock flanneld there, or an IPv4 network"
            ),
        };

        let netlink = Netlink::connect().context("cannot talk to the kernel")?;
        // From here on nothing that happens to the host's network goes unseen.
        let watch = Netlink::watch().context("cannot follow the kernel's notifications")?;
        let underlay = choose_underlay(options, &config).await?;
        info!(
            interface = underlay.name,
            address = %underlay.address,
            public_ip = %underlay.public_ip,
            mtu = underlay.mtu,
            "underlay chosen"
        );

        let vtep = match &config.backend {
            Backend::Vxlan(backend) => {
                let mac = recorded_mac(&store, &underlay).await;
                let spec = VtepSpec::new(backend, &underlay);
                Some(netlink.ensure_vtep(&spec, mac).await?)
            }
            Backend::HostGw => {
                refuse_nat(&underlay)?;
                None
            }
            Backend::Alloc => None,
        };
        let vtep_mac = vtep.as_ref().map_or(MacAddr::ZERO, |vtep| vtep.mac);

        let wish = Wish {
            attrs: convert::attrs(&config.backend, &underlay, vtep_mac),
            allocation,
            previous: previous.ipv4_subnet,
            previous6: None,
        };
        let renewal = Renewal {
            ttl: LEASE_TTL,
            margin: options.lease.renew_margin,
        };
        let mut rng = StdRng::from_os_rng();
        let acquired = match lease::acquire(&*store, &wish, renewal, &mut rng, stop).await {
            Ok(acquired) => acquired,
            Err(lease::AcquireError::Cancelled) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let subnet = acquired.held.key.subnet;
        let leases = lease::spawn(store, acquired, renewal, config_text, stop.clone());

        let local = LocalNode {
            network: allocation.ipv4.network,
            subnet,
            underlay,
            backend: config.backend,
            vtep_mac,
        };
        let ruleset =
            keep_rules(options, &config, &local, &previous, supervisor, readiness).await?;
        let subnet_env = SubnetEnv {
            ipv4: Some(Ipv4Lines {
                network: local.network,
                subnet: local.subnet,
            }),
            ipv6: None,
            mtu: convert::pod_mtu(&local),
            ip_masq: options.filter.ip_masq,
        };

        let tier1 = Tier1::open(&options.datapath)?;
        let peers = leases.view.borrow().usable_peers(&local.backend);
        let desired = Desired { local, peers };
        let mut daemon = Self {
            controller: Controller::new(netlink, tier1, desired, vtep, readiness.clone()),
            watch,
            leases,
            ruleset,
            readiness: readiness.clone(),
            options: options.clone(),
            config,
            subnet_env,
        };
        daemon.readiness.satisfy(Condition::LeaseHeld);
        let again = daemon.controller.settle(Dirty::ALL).await;
        if again.any() {
            warn!("not everything could be set up; trying on");
        }
        daemon.write_subnet_file();
        info!(%subnet, peers = daemon.controller.desired().peers.len(), "node started");
        Ok(Some(daemon))
    }

    /// Looks again at what is dirty. Returns what must be tried again.
    pub async fn settle(&mut self, dirty: Dirty) -> Dirty {
        let mut again = Dirty::default();
        let mut dirty = dirty;
        if dirty.underlay {
            match self.follow_underlay().await {
                Ok(more) => dirty |= more,
                Err(error) => {
                    warn!("underlay: {error:#}");
                    self.readiness
                        .fail(Condition::PeersInSync, format!("{error:#}"));
                    again.underlay = true;
                }
            }
        }
        again |= self.controller.settle(dirty).await;
        again
    }

    /// The underlay's interface, address or MTU may have changed: the lease and both tiers follow.
    async fn follow_underlay(&mut self) -> anyhow::Result<Dirty> {
        let underlay = choose_underlay(&self.options, &self.config).await?;
        let mut desired = self.controller.desired().clone();
        if underlay == desired.local.underlay {
            return Ok(Dirty::default());
        }
        info!(
            interface = underlay.name,
            address = %underlay.address,
            public_ip = %underlay.public_ip,
            mtu = underlay.mtu,
            "underlay changed"
        );
        let local = &mut desired.local;
        local.underlay = underlay;
        self.leases.publish(convert::attrs(
            &local.backend,
            &local.underlay,
            local.vtep_mac,
        ));
        self.subnet_env.mtu = convert::pod_mtu(local);
        self.write_subnet_file();
        Ok(self.controller.want(desired))
    }

    /// SIGHUP: everything is looked at afresh by the next settle; here the files.
    pub fn reload(&mut self) {
        self.write_subnet_file();
    }

    /// Writes the subnet file again if somebody removed it. What others put into it stays: some
    /// set-ups add their Docker options to this very file.
    pub fn keep_subnet_file(&mut self) {
        if !self.options.lease.subnet_file.exists() {
            self.write_subnet_file();
        }
    }

    fn write_subnet_file(&mut self) {
        match self.subnet_env.write(&self.options.lease.subnet_file) {
            Ok(_) => self.readiness.satisfy(Condition::SubnetFileWritten),
            Err(error) => {
                warn!(%error, "subnet file not written");
                self.readiness
                    .fail(Condition::SubnetFileWritten, error.to_string());
            }
        }
    }
}

fn read_previous(options: &DaemonOptions) -> Previous {
    match Previous::read(&options.lease.subnet_file) {
        Ok(previous) => {
            for warning in &previous.warnings {
                warn!("{warning}");
            }
            previous
        }
        Err(error) => {
            warn!(%error, "the previous subnet is unknown");
            Previous::default()
        }
    }
}

/// The VTEP MAC address of an earlier life of this node. Peers know it, so a device that has to be
/// created, after a reboot say, takes it again.
async fn recorded_mac(store: &EtcdStore, underlay: &Underlay) -> Option<MacAddr> {
    let snapshot = store.list().await.ok()?;
    snapshot
        .entries
        .iter()
        .filter_map(|entry| entry.value.as_ref().ok())
        .filter(|attrs| attrs.public_ip == underlay.public_ip)
        .find_map(|attrs| attrs.vxlan_data().map(|data| data.vtep_mac))
}

/// The interface and addresses the options select on this host.
async fn choose_underlay(
    options: &DaemonOptions,
    config: &NetworkConfig,
) -> anyhow::Result<Underlay> {
    let host = underlay::snapshot(options.interface.iface_can_reach).await?;
    let selection = underlay::select(&host, &options.interface, Families::of(config))?;
    for note in &selection.notes {
        debug!("{note}");
    }
    selection
        .underlay()
        .context("the chosen interface has no IPv4 address")
}

fn refuse_nat(underlay: &Underlay) -> anyhow::Result<()> {
    if underlay.public_ip != underlay.address {
        bail!(
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which \
             is not supported by host-gw backend"
        );
    }
    Ok(())
}

/// Installs the packet filter rules and keeps them; failing to install masquerade rules is an error
/// at start, as in flannel. Returns the notifications of foreign rule changes.
async fn keep_rules(
    options: &DaemonOptions,
    config: &NetworkConfig,
    local: &LocalNode,
    previous: &Previous,
    supervisor: &Supervisor,
    readiness: &Readiness,
) -> anyhow::Result<watch::Receiver<RulesetVersion>> {
    let executor = Executor::from_env();
    let settings = convert::filter_settings(&options.filter, config, local);
    let mut filter = Filter::open(settings.clone(), executor.clone()).await?;
    match filter.ensure().await {
        Ok(changes) => {
            for change in changes {
                info!(%change, "packet filter");
            }
            readiness.satisfy(Condition::RulesInstalled);
        }
        Err(error) if options.filter.ip_masq => return Err(error.into()),
        Err(error) => warn!(%error, "packet filter rules are not in place, trying on"),
    }
    filter.remove_strays(&previous_networks(previous)).await;

    let filter_watch = FilterWatch::new(executor, LEGACY_PERIOD);
    let ruleset = filter_watch.subscribe();
    supervisor.spawn("packet filter notifications", {
        let filter_watch = filter_watch.clone();
        move |stop| {
            let filter_watch = filter_watch.clone();
            async move { filter_watch.run(stop).await }
        }
    });
    let (_, settings) = watch::channel(settings);
    let filter = Arc::new(tokio::sync::Mutex::new(filter));
    let readiness = readiness.clone();
    let resync = options.filter.resync;
    supervisor.spawn("packet filter", {
        let changes = ruleset.clone();
        move |stop| {
            let (filter, settings) = (Arc::clone(&filter), settings.clone());
            let (changes, readiness) = (changes.clone(), readiness.clone());
            async move {
                let mut filter = filter.lock().await;
                filter::keep(&mut filter, settings, changes, resync, &readiness, stop).await;
                Ok::<(), std::convert::Infallible>(())
            }
        }
    });
    Ok(ruleset)
}

/// Network and subnet of an earlier run, whose rules must go if they differ.
fn previous_networks(previous: &Previous) -> Vec<filter::PodNetwork> {
    match (previous.ipv4_network, previous.ipv4_subnet) {
        (Some(network), Some(subnet)) => vec![filter::PodNetwork::v4(network, subnet)],
        _ => Vec::new(),
    }
}
