//! Tier 1: the BPF programs, their maps and where they are attached.
//!
//! Everything the programs need is pinned below `--pin-dir` ([`pins`]), so that they keep
//! forwarding while no agent runs, and a starting agent takes over what it finds: maps as they
//! are, links by switching them to its own programs.
//!
//! [`Datapath`] is the writing side; there is one per pin directory. [`Maps`] opens the same maps
//! for reading, agent or no agent.

mod clsact;
mod counters;
mod error;
mod filters;
mod host;
mod links;
mod load;
mod maps;
mod netlink;
mod pins;
mod plan;
mod spec;
mod sys;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
    time::Duration,
};

use ipnetwork::Ipv4Network;
use overlay_common::{addr::MacAddr, config::Config, outcome::Hook};
use tracing::{debug, warn};

pub use self::{
    counters::FastShare,
    error::DatapathError,
    host::{HostFacts, lease_clock},
    links::{Attached, Attachment, LinkState, LinkSummary, XdpMode, states as link_states},
    maps::Maps,
    pins::{DEFAULT_PIN_DIR, PinDir},
    wanted::Vtep,
};
use self::{
    load::Programs,
    plan::{Step, Tables},
};
pub use crate::config::Fastpath;
use crate::model::Desired;

/// How long a lease lasts: long enough that almost every packet of a steady flow is fast, shorter
/// than the 30 s after which conntrack forgets a UDP flow without replies.
pub const LEASE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
pub struct Options<'a> {
    pub pin_dir: PathBuf,
    /// The BPF object (ELF).
    pub object: &'a [u8],
    /// Capacity of the flow table.
    pub max_flows: u32,
    pub fastpath: Fastpath,
    pub lease: Duration,
}

/// The loaded programs and the maps they use.
pub struct Datapath {
    pins: PinDir,
    programs: Programs,
    maps: Maps,
    /// What the maps contain; `None` after a failed write.
    tables: Option<Tables>,
    fastpath: Fastpath,
    lease: Duration,
    /// Held while this agent owns the pin directory.
    _lock: File,
}

/// What [`Datapath::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Nodes tier 1 serves.
    pub nodes: usize,
    pub added: usize,
    /// Changed in place.
    pub updated: usize,
    pub removed: usize,
    /// No room in the maps: the kernel tier alone serves these.
    pub left_to_kernel: Vec<Ipv4Network>,
    /// Leases tier 1 cannot serve: without a VTEP MAC, or with this node's own address.
    pub unusable: Vec<Ipv4Network>,
    /// Every flow has to earn its lease again.
    pub flushed: bool,
    pub generation: u32,
}

impl Datapath {
    /// Loads the programs on the maps pinned in `options.pin_dir`, creating what is missing.
    /// Programs of an earlier agent stay attached until [`Self::attach`] or [`Self::sync_links`].
    pub fn open(options: &Options<'_>) -> Result<Self, DatapathError> {
        let pins = PinDir::new(&options.pin_dir);
        load::require_capabilities()?;
        let lock = pins.prepare()?;
        let programs = load::load(&pins, options.object, options.max_flows)?;
        let maps = Maps::open(&pins)?;
        let tables = Some(maps.tables()?);
        let mut datapath = Self {
            pins,
            programs,
            maps,
            tables,
            fastpath: options.fastpath,
            lease: options.lease,
            _lock: lock,
        };
        datapath.adopt_config()?;
        Ok(datapath)
    }

    /// Brings nodes, routes, peers and configuration to what `desired` says.
    pub fn apply(
        &mut self,
        desired: &Desired,
        vtep: Option<Vtep>,
        facts: &HostFacts,
    ) -> Result<Summary, DatapathError> {
        let wanted = wanted::wanted(desired, vtep, facts, self.fastpath, self.lease);
        let mut tables = match self.tables.take() {
            Some(tables) => tables,
            None => self.maps.tables()?,
        };
        let change = plan::plan(&tables, &wanted.nodes, self.maps.limits());
        let mut summary = Summary {
            left_to_kernel: change.left_to_kernel,
            unusable: wanted.unusable,
            ..Summary::default()
        };
        for step in &change.steps {
            self.run(step, &wanted.config, &mut tables, &mut summary)?;
        }
        summary.nodes = tables.nodes.len();
        self.tables = Some(tables);
        debug!(?summary, "maps applied");
        Ok(summary)
    }

    /// Reads the maps again at the next [`Self::apply`], which then repairs what someone else
    /// changed in them.
    pub fn distrust_tables(&mut self) {
        self.tables = None;
    }

    /// The interfaces through which the host's IP layer receives pod packets, with their MAC
    /// addresses. True if that changed anything; then flows have to earn their leases again.
    pub fn set_gateways(&mut self, wanted: &BTreeMap<u32, MacAddr>) -> Result<bool, DatapathError> {
        let observed = self.maps.gateways()?;
        let mut affects_flows = false;
        for &ifindex in observed
            .keys()
            .filter(|ifindex| !wanted.contains_key(ifindex))
        {
            self.maps.remove_gateway(ifindex)?;
            affects_flows = true;
        }
        let mut changed = affects_flows;
        for (&ifindex, &mac) in wanted {
            let before = observed.get(&ifindex);
            if before != Some(&mac) {
                self.maps.put_gateway(ifindex, mac)?;
                affects_flows |= before.is_some();
                changed = true;
            }
        }
        if affects_flows {
            self.flush()?;
        }
        Ok(changed)
    }

    /// Makes every flow earn its lease again. Returns the generation.
    pub fn flush(&mut self) -> Result<u32, DatapathError> {
        flush(&self.pins, &mut self.maps)
    }

    /// Runs this agent's program at `attachment`, taking over a pinned link.
    pub fn attach(&mut self, attachment: &Attachment) -> Result<Attached, DatapathError> {
        links::attach(&self.pins, &self.programs, attachment)
    }

    /// Detaches `hook` from the interface; nothing attached is fine.
    pub fn detach(&mut self, hook: Hook, ifindex: u32) -> Result<(), DatapathError> {
        links::detach(&self.pins, hook, ifindex)
    }

    /// Attaches to exactly `wanted`: takes over pinned links, creates missing ones, removes the
    /// others, defunct ones included. Once every link runs this agent's programs, maps of other ABI
    /// versions go.
    pub fn sync_links(
        &mut self,
        wanted: &BTreeSet<Attachment>,
    ) -> Result<LinkSummary, DatapathError> {
        let summary = links::sync(&self.pins, &self.programs, wanted)?;
        if summary.failed.is_empty() {
            self.pins.remove_other_versions()?;
        }
        for (attachment, error) in &summary.failed {
            warn!(
                ifname = attachment.ifname,
                hook = attachment.hook.name(),
                %error,
                "program not attached"
            );
        }
        Ok(summary)
    }

    /// The same maps, for metrics and tests.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Gives a first configuration its stamp key. An earlier one is kept under another generation:
    /// nobody watched for changes that concern the flows it let pass.
    fn adopt_config(&mut self) -> Result<(), DatapathError> {
        let _lock = self.pins.lock_config()?;
        let old = self.maps.config()?;
        let stamp_key = if old.stamp_key == [0; 2] {
            rand::random()
        } else {
            old.stamp_key
        };
        let new = Config {
            stamp_key,
            generation: next_generation(old.generation),
            ..old
        };
        self.maps.put_config(&old, &new)
    }

    fn run(
        &mut self,
        step: &Step,
        config: &Config,
        tables: &mut Tables,
        summary: &mut Summary,
    ) -> Result<(), DatapathError> {
        match *step {
            Step::RemoveRoute(subnet) => {
                self.maps.remove_route(subnet)?;
                tables.routes.remove(&subnet);
            }
            Step::RemoveNode(index) => {
                self.maps.remove_node(index)?;
                tables.nodes.remove(&index);
                summary.removed += 1;
            }
            Step::UpdateNode { index, node, moved } => {
                self.maps
                    .put_node(index, tables.nodes.get(&index), &node, moved)?;
                tables.nodes.insert(index, node);
                summary.updated += 1;
            }
            Step::Configure { flush } => {
                (summary.flushed, summary.generation) = self.configure(config, flush)?;
            }
            Step::AddNode { index, node } => {
                self.maps.put_node(index, None, &node, true)?;
                tables.nodes.insert(index, node);
                summary.added += 1;
            }
            Step::RemovePeer(vtep) => {
                self.maps.remove_peer(vtep)?;
                tables.peers.remove(&vtep);
            }
            Step::PutPeer { vtep, index } => {
                self.maps.put_peer(vtep, index)?;
                tables.peers.insert(vtep, index);
            }
            Step::PutRoute { subnet, index } => {
                self.maps.put_route(subnet, index)?;
                tables.routes.insert(subnet, index);
            }
        }
        Ok(())
    }

    /// Writes `config` with the stamp key and generation there are; under another generation if it
    /// changes or `flush` asks for it.
    fn configure(&mut self, config: &Config, flush: bool) -> Result<(bool, u32), DatapathError> {
        let _lock = self.pins.lock_config()?;
        let old = self.maps.config()?;
        let new = Config {
            stamp_key: old.stamp_key,
            generation: old.generation,
            ..*config
        };
        if new == old && !flush {
            return Ok((false, old.generation));
        }
        let new = Config {
            generation: next_generation(old.generation),
            ..new
        };
        self.maps.put_config(&old, &new)?;
        Ok((true, new.generation))
    }
}

/// Makes every flow earn its lease again, agent or no agent. Returns the generation.
pub fn flush(pins: &PinDir, maps: &mut Maps) -> Result<u32, DatapathError> {
    let _lock = pins.lock_config()?;
    let old = maps.config()?;
    let generation = next_generation(old.generation);
    maps.put_config(&old, &Config { generation, ..old })?;
    Ok(generation)
}

/// 0 stays the generation of an entry that was never written.
const fn next_generation(generation: u32) -> u32 {
    match generation.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}
