//! Packet filter rules: masquerading, forwarding, and the source address of pods.
//!
//! Owns flannel's chains `FLANNEL-POSTRTG` and `FLANNEL-FWD` (iptables mode), flannel's tables
//! `ip flannel-ipv4` and `ip6 flannel-ipv6` (nftables mode), and the rules that keep other
//! masquerade rules from hiding pods behind their node: table `overlay-agent`, or chain
//! `OVERLAY-PODSRC` on hosts without `nft`. Everything else in the packet filter is somebody
//! else's and stays.
//!
//! [`Filter::ensure`] observes, compares and applies the difference; applying twice changes
//! nothing the second time. [`FilterWatch`] reports every change of the rule set, so that what
//! others delete is back at once, without flannel's poll. [`cleanup`] removes what is ours.

pub mod exec;
mod family;
pub mod iptables;
pub mod nftables;
pub mod per_packet;
pub mod rules;

mod cleanup;
mod error;
mod keep;
mod legacy;
mod watch;

use std::{collections::BTreeMap, fmt};

use tracing::{info, warn};

pub use self::{
    cleanup::{Removal, cleanup, cleanup_beside_flannel},
    error::FilterError,
    family::RuleFamily,
    keep::keep,
    rules::{Masquerade, Mode, PodNetwork, Settings},
    watch::{FilterWatch, RulesetVersion, Writer, writers},
};
use self::{
    exec::Executor,
    iptables::{
        Installed, Iptables, Variant,
        diff::{ChainChange, ChainSpec, ChangeKind},
    },
    nftables::{Nft, OWN_TABLES, TableId},
    rules::{
        NftTable, chainless_rules, flannel_table, forward_chain, masquerade_chain,
        pod_source_chain, pod_source_table,
    },
};

/// The packet filter of this network namespace, as this agent wants it.
#[derive(Debug)]
pub struct Filter {
    settings: Settings,
    executor: Executor,
    nft: Option<Nft>,
    iptables: BTreeMap<RuleFamily, Iptables>,
}

/// One thing [`Filter::ensure`] had to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterChange {
    /// Where: `iptables-nft` or `nft`.
    pub tool: String,
    /// Which chain or table.
    pub object: String,
    pub kind: ChangeKind,
}

impl fmt::Display for FilterChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.tool, self.object, self.kind)
    }
}

impl Settings {
    fn wants_rules(&self) -> bool {
        self.masquerade.is_on() || self.forward || self.keep_pod_source
    }
}

impl Filter {
    /// Looks up the tools. With no tool for the wanted mode the other mode is used, whose rules
    /// mean the same; with none at all, wanting any rule is an error.
    pub async fn open(settings: Settings, executor: Executor) -> Result<Self, FilterError> {
        let mut filter = Self {
            settings,
            nft: Nft::discover(&executor).await,
            iptables: BTreeMap::new(),
            executor,
        };
        for family in RuleFamily::ALL {
            let installed = Installed::discover(family, &filter.executor).await;
            if let Some(iptables) = installed.in_use(&absent_chains()).await {
                filter.iptables.insert(family, iptables);
            }
        }
        if filter.settings.wants_rules() {
            filter.check_tools()?;
        }
        Ok(filter)
    }

    fn check_tools(&mut self) -> Result<(), FilterError> {
        let networks = &self.settings.networks;
        let iptables = networks
            .iter()
            .all(|pod| self.iptables.contains_key(&pod.family()));
        let fallback = match self.settings.mode {
            Mode::Iptables if iptables => return Ok(()),
            Mode::Nftables if self.nft.is_some() => return Ok(()),
            Mode::Iptables if self.nft.is_some() => Mode::Nftables,
            Mode::Nftables if iptables => Mode::Iptables,
            _ => return Err(FilterError::NoTool),
        };
        warn!(
            wanted = ?self.settings.mode,
            used = ?fallback,
            "the tool of the wanted mode is not installed, using the other one"
        );
        self.settings.mode = fallback;
        Ok(())
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the kernel announces changes of all the rules wanted, as nf_tables does and the old
    /// ip_tables does not.
    pub fn changes_are_announced(&self) -> bool {
        let is_legacy = |family: &RuleFamily| {
            self.iptables
                .get(family)
                .is_some_and(|iptables| iptables.variant() == Variant::Legacy)
        };
        let wanted = |family: &RuleFamily| {
            self.wanted_chains(*family)
                .iter()
                .any(|spec| spec.rules.is_some())
        };
        !RuleFamily::ALL
            .iter()
            .any(|family| is_legacy(family) && wanted(family))
    }

    /// Changes what is wanted; the next [`ensure`](Self::ensure) brings it about.
    pub fn update(&mut self, settings: Settings) -> Result<(), FilterError> {
        self.settings = settings;
        if self.settings.wants_rules() {
            self.check_tools()
        } else {
            Ok(())
        }
    }

    /// Installs what is missing or different, and removes what is not asked for. A family or tool
    /// that fails does not keep the others from being served; the first failure is returned.
    pub async fn ensure(&mut self) -> Result<Vec<FilterChange>, FilterError> {
        let mut changes = Vec::new();
        let mut failure = None;
        let tables = self.wanted_tables();
        if let Some(nft) = &mut self.nft {
            for table in &tables {
                match nft.ensure(table).await {
                    Ok(kind) => changes
                        .extend(kind.map(|kind| table_change((table.family, table.name), kind))),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        for family in RuleFamily::ALL {
            let specs = self.wanted_chains(family);
            let Some(iptables) = self.iptables.get_mut(&family) else {
                continue;
            };
            // What is wholly absent is the business of `remove_strays`.
            if specs.iter().all(|spec| spec.rules.is_none()) {
                continue;
            }
            match iptables.ensure(&specs, false).await {
                Ok(done) => {
                    changes.extend(done.iter().map(|change| chain_change(iptables, change)));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(changes), Err)
    }

    /// Removes what earlier runs left behind and the settings do not ask for: rules of the other
    /// mode, of the other iptables variant, of a family no longer in use, and, given the networks
    /// of the previous run, the chainless rules of flannel up to v0.19. Never an error: a tool
    /// that is absent or fails has no say in whether the daemon starts.
    pub async fn remove_strays(&mut self, previous: &[PodNetwork]) {
        let wanted = self.wanted_tables();
        if let Some(nft) = &self.nft {
            let is_wanted = |id| wanted.iter().any(|table| (table.family, table.name) == id);
            for id in OWN_TABLES.into_iter().filter(|id| !is_wanted(*id)) {
                match nft.remove(id, false).await {
                    Ok(true) => {
                        info!(change = %table_change(id, ChangeKind::Removed), "left behind");
                    }
                    Ok(false) => {}
                    Err(error) => warn!(%error, "cannot check for rules left behind"),
                }
            }
        }
        for family in RuleFamily::ALL {
            for iptables in Installed::discover(family, &self.executor).await.iter_mut() {
                if let Err(error) = self.remove_stray_chains(iptables, previous).await {
                    warn!(%error, "cannot check for rules left behind");
                }
            }
        }
    }

    async fn remove_stray_chains(
        &self,
        iptables: &mut Iptables,
        previous: &[PodNetwork],
    ) -> Result<(), FilterError> {
        let family = iptables.family();
        let in_use = self.iptables.get(&family).map(Iptables::variant);
        let specs = if in_use == Some(iptables.variant()) {
            self.wanted_chains(family)
                .into_iter()
                .filter(|spec| spec.rules.is_none())
                .collect()
        } else {
            absent_chains()
        };
        for change in iptables.ensure(&specs, false).await? {
            info!(change = %chain_change(iptables, &change), "left behind");
        }
        let gone =
            |pod: &&PodNetwork| pod.family() == family && !self.settings.networks.contains(pod);
        for pod in previous.iter().filter(gone) {
            if iptables.delete_rules(&chainless_rules(pod)).await? {
                info!(
                    tool = iptables.name(),
                    "rules of the previous network removed"
                );
            }
        }
        Ok(())
    }

    fn wanted_tables(&self) -> Vec<NftTable> {
        let Some(nft) = &self.nft else {
            return Vec::new();
        };
        let mut dialect = nft.dialect();
        dialect.fully_random &= self.settings.masquerade.fully_random();
        let mut tables = Vec::new();
        for pod in &self.settings.networks {
            if self.settings.mode == Mode::Nftables {
                tables.push(flannel_table(pod, &self.settings, dialect));
            }
            if self.settings.keep_pod_source {
                tables.push(pod_source_table(pod, dialect));
            }
        }
        tables
    }

    fn wanted_chains(&self, family: RuleFamily) -> Vec<ChainSpec> {
        let pod = self
            .settings
            .networks
            .iter()
            .find(|pod| pod.family() == family);
        let iptables_mode = self.settings.mode == Mode::Iptables;
        let random = self.settings.masquerade.fully_random()
            && self
                .iptables
                .get(&family)
                .is_some_and(Iptables::supports_fully_random);
        vec![
            pod_source_chain(pod.filter(|_| self.settings.keep_pod_source && self.nft.is_none())),
            masquerade_chain(
                pod.filter(|_| self.settings.masquerade.is_on() && iptables_mode),
                random,
            ),
            forward_chain(pod.filter(|_| self.settings.forward && iptables_mode)),
        ]
    }
}

/// Our chains, to be absent.
fn absent_chains() -> Vec<ChainSpec> {
    vec![
        pod_source_chain(None),
        masquerade_chain(None, false),
        forward_chain(None),
    ]
}

fn table_change((family, name): TableId, kind: ChangeKind) -> FilterChange {
    FilterChange {
        tool: "nft".into(),
        object: format!("table {} {name}", family.nft()),
        kind,
    }
}

fn chain_change(iptables: &Iptables, change: &ChainChange) -> FilterChange {
    FilterChange {
        tool: iptables.name(),
        object: format!("chain {}", change.chain),
        kind: change.kind,
    }
}
