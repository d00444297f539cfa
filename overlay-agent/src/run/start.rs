//! From nothing to a running node, in flannel's order: config, interface, device, lease, rules,
//! routes, subnet file.

use std::sync::Arc;

use anyhow::Context as _;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    changes::Dirty,
    controller::{Controller, Sides},
    convert,
    end::{End, follow, sweep},
    past::{held_addresses, recorded_macs},
    per_packet::PerPacket,
    reload,
    rules::Rules,
    side::Side,
    subnet_file::SubnetFile,
    tier1::Tier1,
};
use crate::{
    config::{DaemonOptions, NetworkConfig, ParsedNetworkConfig},
    core::{Allocation, Renewal, Wish},
    health::{Condition, Readiness},
    lease::{
        self, ConfigText, Deadlines, EtcdStore, LeaseAttrs, LeaseHandle, LeaseKey, LeaseStore as _,
        StoreError,
    },
    lifecycle::Supervisor,
    model::{Desired, DesiredNode, V4, V6},
    netlink::{Netlink, Watch},
    output,
    subnet_env::Previous,
    underlay::{self, Families, Held},
};

/// A running node.
pub struct Daemon {
    pub controller: Controller,
    pub watch: Watch,
    pub leases: LeaseHandle,
    pub rules: Rules,
    per_packet: Option<PerPacket>,
    pub readiness: Readiness,
    pub subnet_file: SubnetFile,
    lease: LeaseKey,
    /// What the lease was last told to say.
    advertised: LeaseAttrs,
    options: DaemonOptions,
    config: NetworkConfig,
    store: Arc<EtcdStore>,
    held: Held,
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
        let waiting_for = |what: &'static str| {
            move |problem: &str| {
                let reason = format!("waiting for {what}: {problem}");
                readiness.fail(Condition::LeaseHeld, reason);
            }
        };
        let waits = waiting_for("the network config");
        let Some((parsed, config_text)) = lease::await_config(&*store, stop, parse, waits).await
        else {
            return Ok(None);
        };
        readiness.fail(Condition::LeaseHeld, "starting");
        let ParsedNetworkConfig { config, warnings } = parsed;
        for warning in warnings {
            warn!("network config: {warning}");
        }

        let netlink = Netlink::connect().context("cannot talk to the kernel")?;
        // From here on nothing that happens to the host's network goes unseen.
        let watch = Netlink::watch().context("cannot follow the kernel's notifications")?;
        let backend = config.backend;
        // Without them the node could take another address and VTEP MAC than its peers know.
        let waits = waiting_for("the leases");
        let Some(leases) = lease::await_leases(&*store, stop, waits).await else {
            return Ok(None);
        };
        readiness.fail(Condition::LeaseHeld, "starting");
        let host = underlay::snapshot(options.interface.iface_can_reach).await?;
        let links = netlink.links().await?;
        let mut held = held_addresses(&links, &backend, &host, &leases);
        let families = Families::of(&config);
        let selection = underlay::select(&host, &options.interface, families, &held)?;
        held.note(&host, &selection);
        for note in &selection.notes {
            info!("{note}");
        }
        let macs = recorded_macs(&leases, &selection);
        let ipv4 = End::prepare(&netlink, &backend, selection.ipv4(), macs.ipv4).await?;
        let ipv6 = End::prepare(&netlink, &backend, selection.ipv6(), macs.ipv6).await?;
        if ipv4.is_none() {
            sweep::<V4>(&netlink, selection.ifindex).await?;
        }
        if ipv6.is_none() {
            sweep::<V6>(&netlink, selection.ifindex).await?;
        }

        let wish = Wish {
            attrs: convert::attrs(
                &backend,
                ipv4.as_ref().map(End::advertised),
                ipv6.as_ref().map(End::advertised),
            ),
            allocation: Allocation::of(&config),
            previous: previous.ipv4_subnet,
            previous6: previous.ipv6_subnet,
        };
        let renewal = Renewal {
            ttl: Renewal::TTL,
            margin: options.lease.renew_margin,
        };
        let mut rng = StdRng::from_os_rng();
        let acquired = match lease::acquire(&*store, &wish, renewal, &mut rng, stop).await {
            Ok(acquired) => acquired,
            Err(lease::AcquireError::Cancelled) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let lease = acquired.held.key;
        let leases = lease::spawn(
            Arc::clone(&store),
            acquired,
            renewal,
            config_text,
            stop.clone(),
        );

        let blackhole = options.filter.blackhole_route;
        let sides = {
            let view = leases.view.borrow();
            let side = |end: End<V4>| {
                let desired = Desired {
                    local: end.local(config.ipv4?.network, lease.ipv4()?, backend),
                    peers: view.usable_peers(&backend),
                };
                Some(Side::new(desired, end.vtep, blackhole))
            };
            let side6 = |end: End<V6>| {
                let desired = Desired {
                    local: end.local(config.ipv6?.network, lease.ipv6()?, backend),
                    peers: view.usable_peers6(&backend),
                };
                Some(Side::new(desired, end.vtep, blackhole))
            };
            Sides {
                ipv4: ipv4.and_then(side),
                ipv6: ipv6.and_then(side6),
            }
        };
        let node = sides.desired();
        let rules = Rules::install(
            &options.filter,
            convert::filter_settings(&options.filter, &config, &node),
            &previous,
            supervisor,
            readiness,
        )
        .await?;
        let subnet_env = convert::subnet_env(&node, options.filter.ip_masq);

        let tier1 = Tier1::open(&options.datapath, sides.serves(), supervisor)?;
        let per_packet = PerPacket::spawn(&options.datapath, &tier1, &sides, &rules, supervisor)?;
        let mut controller = Controller::new(netlink, tier1, sides, readiness.clone());
        readiness.satisfy(Condition::LeaseHeld);
        readiness.satisfy(Condition::UnderlayFound);
        let again = controller.settle(Dirty::ALL).await;
        if again.any() {
            warn!("not everything could be set up; trying on");
        }
        // Whoever waits for the file starts containers: everything else is in place before.
        let path = options.lease.subnet_file.clone();
        let subnet_file = SubnetFile::create(path, subnet_env, readiness.clone());
        info!(%lease, peers = node.peers(), "node started");
        let mut daemon = Self {
            lease,
            advertised: wish.attrs,
            controller,
            watch,
            leases,
            rules,
            per_packet,
            readiness: readiness.clone(),
            subnet_file,
            options: options.clone(),
            config,
            store,
            held,
        };
        daemon.advertise();
        Ok(Some(daemon))
    }

    /// Looks again at what is dirty. Returns what must be tried again.
    pub async fn settle(&mut self, dirty: Dirty) -> Dirty {
        let mut again = Dirty::default();
        let mut dirty = dirty;
        if dirty.underlay {
            let (more, problem) = self.follow_underlay().await;
            dirty |= more;
            again.underlay = problem.is_some();
            self.report_underlay(problem);
        }
        again |= self.controller.settle(dirty).await;
        if let Some(per_packet) = &self.per_packet {
            per_packet.see_from(self.controller.sides());
        }
        if dirty.vtep {
            // The device may be another one, which takes other packets.
            self.advertise();
        }
        again
    }

    fn report_underlay(&self, problem: Option<anyhow::Error>) {
        let Some(problem) = problem else {
            return self.readiness.satisfy(Condition::UnderlayFound);
        };
        let reason = output::one_line(&problem);
        if self
            .readiness
            .fail(Condition::UnderlayFound, reason.clone())
        {
            warn!("underlay: {reason}");
        }
    }

    /// The underlay's interface, address or MTU may have changed: the lease and both tiers follow.
    /// What is missing is the problem returned.
    async fn follow_underlay(&mut self) -> (Dirty, Option<anyhow::Error>) {
        let interface = &self.options.interface;
        let host = match underlay::snapshot(interface.iface_can_reach).await {
            Ok(host) => host,
            Err(error) => return (Dirty::default(), Some(error.into())),
        };
        let families = Families::of(&self.config);
        let (selection, missing) = underlay::select_again(&host, interface, families, &self.held);
        let missing = missing.map(anyhow::Error::from);
        let Some(selection) = selection else {
            return (Dirty::default(), missing);
        };
        let mut desired = self.controller.desired();
        let followed = follow(&mut desired.ipv4, selection.ipv4())
            .and_then(|ipv4| Ok(ipv4 | follow(&mut desired.ipv6, selection.ipv6())?));
        match followed {
            Ok(changed) => {
                self.held.note(&host, &selection);
                let dirty = if changed {
                    self.take_local(desired)
                } else {
                    Dirty::default()
                };
                (dirty, missing)
            }
            Err(error) => (Dirty::default(), Some(error)),
        }
    }

    /// Has the lease, the subnet file and both tiers say what changed about this node.
    fn take_local(&mut self, desired: DesiredNode) -> Dirty {
        self.subnet_file.set_mtu(convert::pod_mtu(&desired));
        let dirty = self.controller.want(desired);
        self.advertise();
        dirty
    }

    /// Has the lease say what this node is.
    fn advertise(&mut self) {
        let attrs = convert::attrs_of(&self.config.backend, &self.controller.desired());
        if attrs != self.advertised {
            self.advertised = attrs.clone();
            self.leases.publish(attrs);
        }
    }

    /// Reads the network config for [`Self::reload`].
    pub fn read_config(
        &self,
    ) -> impl Future<Output = Result<Option<ConfigText>, StoreError>> + Send + use<> {
        let store = Arc::clone(&self.store);
        async move { store.config().await }
    }

    /// Takes over what of the network config a running node can take over. Everything is to be
    /// settled afterwards.
    pub fn reload(&mut self, read: Result<Option<ConfigText>, StoreError>) {
        let text = match read {
            Ok(Some(text)) => text,
            Ok(None) => {
                error!("there is no network config in etcd; going on with the one in force");
                return;
            }
            Err(error) => {
                error!(%error, "cannot read the network config; going on with the one in force");
                return;
            }
        };
        let ParsedNetworkConfig { config, warnings } =
            match NetworkConfig::parse(text.text.as_bytes()) {
                Ok(parsed) => parsed,
                Err(error) => {
                    error!(
                        revision = text.mod_revision,
                        "network config not applied, going on with the one in force: {error}"
                    );
                    return;
                }
            };
        for warning in warnings {
            warn!("network config: {warning}");
        }
        let mut desired = self.controller.desired();
        let merged = reload::merge(&self.config, &config, &self.lease);
        if merged.applied.is_empty() && merged.postponed.is_empty() {
            info!("the network config is the one in force");
        }
        if !merged.applied.is_empty() {
            info!(keys = ?merged.applied, "network config applied");
        }
        if merged.postponed.is_empty() {
            self.leases.in_force(text);
        } else {
            warn!(
                keys = ?merged.postponed,
                "these keys of the network config come into force when the daemon is restarted"
            );
        }
        self.config = merged.config;
        desired.set_backend(self.config.backend);
        self.rules.want(convert::filter_settings(
            &self.options.filter,
            &self.config,
            &desired,
        ));
        self.take_local(desired);
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
