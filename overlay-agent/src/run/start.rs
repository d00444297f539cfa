//! From nothing to a running node, in flannel's order: config, interface, device, lease, rules,
//! routes, subnet file.

use std::{pin::pin, sync::Arc};

use anyhow::Context as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    changes::Dirty,
    controller::Controller,
    convert,
    end::{TunnelEnd, follow, set_backend, sweep},
    flushes::Flushes,
    monitor,
    past::{held_addresses, recorded},
    per_packet::PerPacket,
    reload,
    rules::Rules,
    settler::{Job, Settled, Settler},
    short_way,
    side::Side,
    subnet_file::SubnetFile,
    tier1::Tier1,
    work::{Seen, Work},
};
use crate::{
    backend::{ChangedKeys, LeaseData},
    check,
    clock::Clock,
    config::{DaemonOptions, NetworkConfig, ParsedNetworkConfig},
    conntrack::{TimeoutWatch, Timeouts},
    health::{Condition, Readiness},
    inquiry::Served,
    lifecycle::{Supervisor, memory},
    membership::{self, Member, Membership, Wish},
    metrics::{self, Metrics},
    model::{
        ConfigText, Desired, DesiredNode, LeaseAttrs, LeaseKey, PerFamily, StoreError, each_family,
    },
    netlink::{Netlink, NetlinkError, Watch},
    output,
    probe::Probes,
    subnet_env::Previous,
    underlay::{self, Families, Held, HostSnapshot},
    view::LeaseMetrics,
};

/// A running node.
pub struct Daemon {
    pub controller: Controller,
    pub flushes: Flushes,
    pub metrics: metrics::Daemon,
    /// What did not succeed at the start.
    pub again: Dirty,
    pub watch: Watch,
    pub leases: Member,
    /// Answers `check`.
    _told: Option<Served>,
    pub rules: Rules,
    per_packet: Option<PerPacket>,
    pub timeouts: Timeouts,
    pub readiness: Readiness,
    pub subnet_file: SubnetFile,
    probes: Option<Probes>,
    lease: LeaseKey,
    /// What the lease was last told to say.
    advertised: LeaseAttrs,
    options: DaemonOptions,
    pub config: NetworkConfig,
    pub store: Arc<dyn Membership>,
    /// Whether something of the backend runs, which has to know the leases.
    pub runs: bool,
    held: Held,
    netlink: Netlink,
    /// Locked while it works.
    settler: Arc<Mutex<Settler>>,
}

impl Daemon {
    /// Starts the node. `None` if `stop` was cancelled meanwhile.
    pub async fn start(
        options: &DaemonOptions,
        supervisor: &Supervisor,
        readiness: &Readiness,
        metrics: &Metrics,
        probes: Option<Probes>,
        clock: Clock,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let previous = read_previous(options);
        let counters = &metrics.daemon;
        let store = membership::open(options, counters.store.clone())?;
        supervisor.spawn("clock comparison", {
            let (clock, store) = (clock.clone(), Arc::clone(&store));
            move |stop| clock.clone().run(Arc::clone(&store), stop)
        });
        let parse = |text: &str| NetworkConfig::parse(text.as_bytes());
        let waiting_for = |what: &'static str| {
            move |problem: &str| {
                let reason = format!("waiting for {what}: {problem}");
                readiness.fail(Condition::LeaseHeld, reason);
            }
        };
        let waits = waiting_for("the network config");
        let found = membership::await_config(&*store, stop, parse, waits).await;
        let Some((parsed, config_text)) = found else {
            return Ok(None);
        };
        readiness.fail(Condition::LeaseHeld, "starting");
        let ParsedNetworkConfig { config, warnings } = parsed;
        for warning in warnings {
            warn!("network config: {warning}");
        }

        let netlink = Netlink::connect().context("cannot talk to the kernel")?;
        // From here on nothing that happens to the host's network goes unseen.
        let mut watch = Netlink::watch().context("cannot follow the kernel's notifications")?;
        let backend = config.backend.clone();
        // Without them the node could take another address and VTEP MAC than its peers know.
        let waits = waiting_for("the leases");
        let Some(known) = membership::await_known(&*store, stop, waits).await else {
            return Ok(None);
        };
        readiness.fail(Condition::LeaseHeld, "starting");
        let options = &told(options, &*store);
        let host = underlay::snapshot(options.interface.iface_can_reach).await?;
        let links = netlink.links().await?;
        let mut held = held_addresses(&links, &backend, &host, &known);
        let families = Families::of(&config);
        let selection = underlay::select(&host, &options.interface, families, &held)?;
        held.note(&host, &selection);
        for note in &selection.notes {
            info!("{note}");
        }
        let mut runtime = backend.runtime();
        let said = match &mut runtime {
            Some(runtime) => {
                let underlays = selection.underlays();
                let serves = each_family!(underlays.present(), underlay => underlay.is_some());
                runtime.prepare(serves).await?
            }
            None => LeaseData::default(),
        };
        let runs = runtime.is_some();
        let recorded = recorded(&known, &selection);
        drop(known);
        let parts = selection.underlays().zip(recorded).zip(said);
        let ends = each_family!(parts, ((underlay, recorded), said) => {
            TunnelEnd::prepare(&netlink, &backend, underlay, &recorded, said).await?
        });
        let devices = each_family!(ends.present(), end => {
            end.and_then(|end| end.vtep.as_ref()).map(|vtep| vtep.ifindex)
        });
        let devices: Vec<u32> = devices.into_iter().flatten().collect();
        each_family!(ends.present(), end => {
            sweep(&netlink, end, selection.ifindex, &devices).await?;
        });

        let wish = Wish {
            attrs: convert::attrs(
                &backend,
                each_family!(ends.present(), end => end.map(TunnelEnd::advertised)),
            ),
            allocation: config.pools,
            previous: previous.ipv4_subnet,
            previous6: previous.ipv6_subnet,
        };
        let wished = wish.attrs.clone();
        let Some(leases) = store.join(wish, config_text, stop.clone()).await? else {
            return Ok(None);
        };
        let advertised = leases.assigned.clone().unwrap_or(wished);
        let lease = leases.view.borrow().own.key;
        let assigned = leases.assigned.as_ref();
        let assigned = PerFamily {
            ipv4: assigned.and_then(|attrs| attrs.backend_data.as_deref()),
            ipv6: assigned.and_then(|attrs| attrs.backend_v6_data.as_deref()),
        };
        let ends = each_family!(ends.zip(assigned), (end, data) => match end {
            Some(end) => Some(end.become_assigned(&netlink, &backend, data).await?),
            None => None,
        });

        let blackhole = options.filter.blackhole_route;
        let (sides, followed) = {
            let view = leases.view.borrow();
            let parts = ends.zip(config.pools).zip(lease.subnets());
            let sides = each_family!(parts, ((end, pool), subnet) => {
                end.zip(pool).zip(subnet).map(|((end, pool), subnet)| {
                    let desired = Desired {
                        local: end.local(pool.network, subnet, &backend),
                        peers: view.usable_peers(&backend),
                    };
                    Side::new(desired, end.vtep, blackhole)
                })
            });
            (sides, view.peers.position())
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

        let mut timeouts = TimeoutWatch::spawn(supervisor, rules.ruleset.clone()).await;
        // The programs take the most memory, and after them the many peers.
        memory::give_back();
        let tier1 = Tier1::open(
            &options.datapath,
            sides.serves(),
            sides.tunnel(),
            supervisor,
        )?;
        memory::give_back();
        let per_packet = PerPacket::spawn(&options.datapath, &tier1, &node, &rules, supervisor)?;
        short_way::spawn(&options.datapath, &tier1, supervisor)?;
        let flushes = Flushes::spawn(tier1.flusher()?, supervisor, readiness);
        let mut controller = Controller::new(node, followed, sides.devices());
        if runs {
            controller.want_leases(&leases.view.borrow(), &backend);
        }
        let mut settler = Settler::new(
            netlink.clone(),
            tier1,
            sides,
            runtime,
            readiness.clone(),
            counters.clone(),
        );
        readiness.satisfy(Condition::LeaseHeld);
        readiness.satisfy(Condition::UnderlayFound);
        let dump = netlink.dump_links().await;
        let unseen = report_unseen(dump.as_ref().err());
        controller.end_dump(dump.ok());
        let job = Job {
            dirty: Dirty::ALL,
            backend,
            desired: controller.order(),
            scene: runs.then(|| controller.scene()),
            pods: controller.pods(),
            timeouts: timeouts.borrow_and_update().clone(),
        };
        let (settled, news) = {
            let mut settling = pin!(settler.settle(job));
            let mut news = Dirty::default();
            // The kernel tells of each of the changes, and remembers only so many that nobody has heard.
            loop {
                tokio::select! {
                    biased;
                    Some(event) = watch.next() => news |= controller.note(&event),
                    settled = &mut settling => break (settled, news),
                }
            }
        };
        controller.take_devices(settled.devices);
        // What changed while no agent watched may concern any flow.
        flushes.request();
        let mut again = settled.again;
        again |= unseen;
        if again.any() {
            warn!("not everything could be set up; trying on");
        }
        if news.flush {
            flushes.request();
        }
        again |= news.without_flush();
        let settler = Arc::new(Mutex::new(settler));
        monitor::spawn(Arc::clone(&settler), supervisor);
        // Whoever waits for the file starts containers: everything else is in place before.
        let path = options.lease.subnet_file.clone();
        let subnet_file = SubnetFile::create(path, subnet_env, readiness.clone());
        info!(%lease, peers = controller.desired().peers(), "node started");
        memory::give_back();
        metrics.register(LeaseMetrics::new(leases.view.clone()));
        let mut daemon = Self {
            lease,
            advertised,
            controller,
            flushes,
            metrics: counters.clone(),
            again,
            watch,
            _told: tell(&leases, clock),
            leases,
            rules,
            per_packet,
            timeouts,
            readiness: readiness.clone(),
            subnet_file,
            probes,
            options: options.clone(),
            config,
            store,
            runs,
            held,
            netlink,
            settler,
        };
        daemon.advertise();
        daemon.leases.started();
        daemon.probe(supervisor);
        Ok(Some(daemon))
    }

    /// Begins to look again at what is dirty.
    pub fn begin(&mut self, dirty: Dirty) -> Work {
        if !dirty.underlay && !dirty.resync {
            return self.settle(dirty);
        }
        if dirty.resync {
            self.controller.begin_dump();
        }
        Work::look(
            dirty,
            self.netlink.clone(),
            self.options.interface.iface_can_reach,
        )
    }

    /// Takes over what a look at the host has shown. Returns what is to be settled, and what has to be
    /// tried again.
    pub fn take_seen(&mut self, mut dirty: Dirty, seen: Seen) -> (Dirty, Dirty) {
        let mut again = Dirty::default();
        if let Some(links) = seen.links {
            again |= report_unseen(links.as_ref().err());
            dirty |= self.controller.end_dump(links.ok());
        }
        if let Some(host) = seen.host {
            let (more, problem) = match host {
                Ok(host) => self.follow_underlay(&host),
                Err(error) => (Dirty::default(), Some(error)),
            };
            dirty |= more;
            again.underlay = problem.is_some();
            self.report_underlay(problem);
        }
        (dirty, again)
    }

    /// Begins to bring both tiers to the desired state. Only one such work is under way.
    pub fn settle(&mut self, dirty: Dirty) -> Work {
        if let Some(per_packet) = &self.per_packet {
            per_packet.see_from(self.controller.desired());
        }
        let job = Job {
            dirty,
            backend: self.config.backend.clone(),
            desired: self.controller.order(),
            scene: self.runs.then(|| self.controller.scene()),
            pods: self.controller.pods(),
            timeouts: self.timeouts.borrow().clone(),
        };
        Work::settle(Arc::clone(&self.settler), job)
    }

    /// Ends what runs of the backend.
    pub async fn end_backend(&self) {
        self.settler.lock().await.end().await;
    }

    /// Takes over what came of it.
    pub fn take_settled(&mut self, settled: &Settled, dirty: Dirty) {
        self.controller.take_devices(settled.devices.clone());
        if dirty.vtep {
            // The device may be another one, which takes other packets.
            self.advertise();
        }
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
    fn follow_underlay(&mut self, host: &HostSnapshot) -> (Dirty, Option<anyhow::Error>) {
        let interface = &self.options.interface;
        let families = Families::of(&self.config);
        let (selection, missing) = underlay::select_again(host, interface, families, &self.held);
        let missing = missing.map(anyhow::Error::from);
        let Some(selection) = selection else {
            return (Dirty::default(), missing);
        };
        let mut desired = self.controller.desired().clone();
        let sides = desired.as_mut().zip(selection.underlays());
        let followed = each_family!(sides, (side, underlay) => {
            match follow(side, underlay, &self.config.backend) {
                Ok(changed) => changed,
                Err(error) => return (Dirty::default(), Some(error.into())),
            }
        });
        self.held.note(host, &selection);
        let dirty = if followed.any() {
            self.take_local(desired)
        } else {
            Dirty::default()
        };
        (dirty, missing)
    }

    /// Has the lease, the subnet file and both tiers say what changed about this node.
    fn take_local(&mut self, desired: DesiredNode) -> Dirty {
        self.subnet_file.set_mtu(convert::pod_mtu(&desired));
        let dirty = self.controller.want(desired);
        self.advertise();
        if let Some(probes) = &self.probes {
            probes.set_own(convert::own_ends(self.controller.desired()));
        }
        dirty
    }

    /// Begins to ask the peers.
    fn probe(&self, supervisor: &Supervisor) {
        let Some(probes) = &self.probes else {
            return;
        };
        probes.set_own(convert::own_ends(self.controller.desired()));
        let (probes, leases) = (probes.clone(), self.leases.view.clone());
        let backend = self.config.backend.clone();
        supervisor.spawn("peer probes", move |stop| {
            probes.clone().run(leases.clone(), backend.clone(), stop)
        });
    }

    /// Has the lease say what this node is.
    fn advertise(&mut self) {
        let attrs = convert::attrs_of(&self.config.backend, self.controller.desired());
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
                error!(
                    "there is no network config in {}; going on with the one in force",
                    self.store.name()
                );
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
        let mut desired = self.controller.desired().clone();
        let merged = reload::merge(&self.config, &config, &self.lease);
        let ChangedKeys { applied, postponed } = merged.keys;
        if applied.is_empty() && postponed.is_empty() {
            info!("the network config is the one in force");
        }
        if !applied.is_empty() {
            info!(keys = ?applied, "network config applied");
        }
        if postponed.is_empty() {
            self.leases.in_force(text);
        } else {
            warn!(
                keys = ?postponed,
                "these keys of the network config come into force when the daemon is restarted"
            );
        }
        self.config = merged.config;
        self.controller.distrust_peers();
        each_family!(desired.as_mut(), side => set_backend(side, &self.config.backend));
        self.rules.want(convert::filter_settings(
            &self.options.filter,
            &self.config,
            &desired,
        ));
        self.take_local(desired);
    }
}

/// The options with the addresses that the store has this node advertise.
fn told(options: &DaemonOptions, store: &dyn Membership) -> DaemonOptions {
    let mut options = options.clone();
    let PerFamily { ipv4, ipv6 } = store.told();
    let interface = &mut options.interface;
    interface.public_ip = ipv4.or(interface.public_ip);
    interface.public_ipv6 = ipv6.or(interface.public_ipv6);
    options
}

/// Has `check` ask about leases and the clock. The node does as well without.
fn tell(leases: &Member, clock: Clock) -> Option<Served> {
    let served = check::tell(leases.view.clone(), clock);
    if let Err(error) = &served {
        warn!(%error, "`overlay-agent check` does not hear of leases with one address");
    }
    served.ok()
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

/// Links that could not be listed have to be looked at again.
fn report_unseen(error: Option<&NetlinkError>) -> Dirty {
    if let Some(error) = error {
        warn!(%error, "cannot read the host's interfaces");
    }
    Dirty {
        resync: error.is_some(),
        ..Dirty::default()
    }
}
