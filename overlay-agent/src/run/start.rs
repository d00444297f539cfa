//! From nothing to a running node, in flannel's order: config, interface, device, lease, rules,
//! routes, subnet file.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use overlay_common::addr::MacAddr;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    changes::Dirty, controller::Controller, convert, reload, rules::Rules, subnet_file::SubnetFile,
    tier1::Tier1,
};
use crate::{
    config::{DaemonOptions, NetworkConfig, ParsedNetworkConfig},
    core::{Allocation, Renewal, Wish},
    health::{Condition, Readiness},
    lease::{self, ConfigText, Deadlines, EtcdStore, LeaseHandle, LeaseStore as _, StoreError},
    lifecycle::Supervisor,
    model::{Backend, Desired, LocalNode, Underlay},
    netlink::{Netlink, VtepSpec, Watch},
    subnet_env::{Ipv4Lines, Previous, SubnetEnv},
    underlay::{self, Families, Selection},
};

/// A running node.
pub struct Daemon {
    pub controller: Controller,
    pub watch: Watch,
    pub leases: LeaseHandle,
    pub rules: Rules,
    pub readiness: Readiness,
    pub subnet_file: SubnetFile,
    options: DaemonOptions,
    config: NetworkConfig,
    store: Arc<EtcdStore>,
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
        // As flannel: a config that makes no sense may be mended, one that asks for what there is
        // not ends the daemon.
        let parse = |text: &str| match NetworkConfig::parse(text.as_bytes()) {
            Err(error) if error.is_fatal_in_flannel() => Ok(Err(error)),
            parsed => parsed.map(Ok),
        };
        let Some((parsed, config_text)) = lease::await_config(&*store, stop, parse).await else {
            return Ok(None);
        };
        let ParsedNetworkConfig { config, warnings } = parsed?;
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
        let selection = select_underlay(options, &config).await?;
        for note in &selection.notes {
            info!("{note}");
        }
        let underlay = ipv4_side(&selection)?;
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
        for name in netlink
            .remove_unfinished_vteps(&underlay, vtep.as_ref())
            .await?
        {
            info!(device = name, "removed what an unfinished start had left");
        }
        let vtep_mac = vtep.as_ref().map_or(MacAddr::ZERO, |vtep| vtep.mac);

        let wish = Wish {
            attrs: convert::attrs(&config.backend, &underlay, vtep_mac),
            allocation,
            previous: previous.ipv4_subnet,
            previous6: None,
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
        let subnet = acquired.held.key.subnet;
        let leases = lease::spawn(
            Arc::clone(&store),
            acquired,
            renewal,
            config_text,
            stop.clone(),
        );

        let local = LocalNode {
            network: allocation.ipv4.network,
            subnet,
            underlay,
            backend: config.backend,
            vtep_mac,
        };
        let rules = Rules::install(
            &options.filter,
            convert::filter_settings(&options.filter, &config, &local),
            &previous,
            supervisor,
            readiness,
        )
        .await?;
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
        let mut controller = Controller::new(
            netlink,
            tier1,
            desired,
            vtep,
            options.filter.blackhole_route,
            readiness.clone(),
        );
        readiness.satisfy(Condition::LeaseHeld);
        readiness.satisfy(Condition::UnderlayFound);
        let again = controller.settle(Dirty::ALL).await;
        if again.any() {
            warn!("not everything could be set up; trying on");
        }
        // Whoever waits for the file starts containers: everything else is in place before.
        let path = options.lease.subnet_file.clone();
        let subnet_file = SubnetFile::create(path, subnet_env, readiness.clone());
        info!(%subnet, peers = controller.desired().peers.len(), "node started");
        Ok(Some(Self {
            controller,
            watch,
            leases,
            rules,
            readiness: readiness.clone(),
            subnet_file,
            options: options.clone(),
            config,
            store,
        }))
    }

    /// Looks again at what is dirty. Returns what must be tried again.
    pub async fn settle(&mut self, dirty: Dirty) -> Dirty {
        let mut again = Dirty::default();
        let mut dirty = dirty;
        if dirty.underlay {
            match self.follow_underlay().await {
                Ok(more) => {
                    dirty |= more;
                    self.readiness.satisfy(Condition::UnderlayFound);
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if self
                        .readiness
                        .fail(Condition::UnderlayFound, reason.clone())
                    {
                        warn!("underlay: {reason}");
                    }
                    again.underlay = true;
                }
            }
        }
        again |= self.controller.settle(dirty).await;
        again
    }

    /// The underlay's interface, address or MTU may have changed: the lease and both tiers follow.
    async fn follow_underlay(&mut self) -> anyhow::Result<Dirty> {
        let underlay = ipv4_side(&select_underlay(&self.options, &self.config).await?)?;
        if matches!(self.config.backend, Backend::HostGw) {
            refuse_nat(&underlay)?;
        }
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
        desired.local.underlay = underlay;
        Ok(self.take_local(desired))
    }

    /// Has the lease, the subnet file and both tiers say what changed about this node.
    fn take_local(&mut self, desired: Desired) -> Dirty {
        let local = &desired.local;
        self.leases.publish(convert::attrs(
            &local.backend,
            &local.underlay,
            local.vtep_mac,
        ));
        self.subnet_file.set_mtu(convert::pod_mtu(local));
        self.controller.want(desired)
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
        let mut desired = self.controller.desired().clone();
        let merged = reload::merge(&self.config, &config, desired.local.subnet);
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
        desired.local.backend = self.config.backend;
        self.rules.want(convert::filter_settings(
            &self.options.filter,
            &self.config,
            &desired.local,
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
async fn select_underlay(
    options: &DaemonOptions,
    config: &NetworkConfig,
) -> anyhow::Result<Selection> {
    let host = underlay::snapshot(options.interface.iface_can_reach).await?;
    Ok(underlay::select(
        &host,
        &options.interface,
        Families::of(config),
    )?)
}

fn ipv4_side(selection: &Selection) -> anyhow::Result<Underlay> {
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
