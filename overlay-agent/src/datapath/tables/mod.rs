//! One family's maps kept as desired.

mod part;
pub mod plan;
pub mod wanted;

use std::{collections::BTreeSet, time::Duration};

use overlay_common::{
    config::{Config, FASTPATH_LEARNING, FASTPATH_TRUSTED},
    short::closed,
};
use tracing::debug;

use self::{
    plan::{MapPlan, Step},
    wanted::{LocalVtep, Wanted},
};
use super::{
    error::DatapathError,
    host::HostFacts,
    maps::{
        config::{is_gentle, next_generation},
        config_lock::ConfigLock,
        contents::Tables,
        overlay::OverlayMaps,
    },
    pins::PinDir,
};
use crate::{
    config::{Fastpath, SlowMark},
    model::{Desired, Family, LocalNode, V4, pack},
};

/// An `overlay-agent flush` is done within microseconds, unless it was stopped.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The writing side of a family's maps.
pub struct Writer<'a, F: Family> {
    pub pins: &'a PinDir,
    pub maps: &'a mut OverlayMaps<F>,
    pub written: &'a mut Written<F>,
    pub fastpath: Fastpath,
    pub slow_mark: Option<SlowMark>,
}

/// What became of a family's maps so far.
pub struct Written<F: Family> {
    /// What they contain; `None` if that is not known, as after a failed write.
    pub tables: Option<Tables<F>>,
    /// A part of an earlier change was made, and not its flush: the next attempt, which finds less to
    /// change, has to do it all the same.
    pub flush_owed: bool,
    pub translations: Translations,
    /// What the tables were made from, if they hold exactly what was wanted.
    basis: Option<Basis<F>>,
}

/// What the entry of a node depends on beside its peer.
struct Basis<F: Family> {
    local: LocalNode<F>,
    vtep: Option<LocalVtep>,
    facts: HostFacts<F>,
    /// The addresses that several nodes have.
    shared: BTreeSet<F::Be>,
}

/// What is known of translations, which only trusted mode asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Translations {
    /// The programs note nothing, or did not yet.
    #[default]
    Unknown,
    /// The programs note what is translated from now on.
    Noted,
    /// What is older was looked up since.
    Known,
    /// What is older cannot be looked up: pairs of pods are not used.
    Hidden,
}

impl<F: Family> Default for Written<F> {
    fn default() -> Self {
        Self {
            tables: None,
            flush_owed: false,
            translations: Translations::default(),
            basis: None,
        }
    }
}

/// What [`Datapath::apply`](super::Datapath::apply) did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary<F: Family = V4> {
    /// Nodes tier 1 serves.
    pub nodes: usize,
    pub added: usize,
    /// Changed in place.
    pub updated: usize,
    pub removed: usize,
    /// No room in the maps: the kernel tier alone serves these.
    pub left_to_kernel: Vec<F::Network>,
    /// Leases tier 1 cannot serve: without a VTEP MAC, or with this node's own address.
    pub unusable: Vec<F::Network>,
    /// Every flow has to earn its permit again.
    pub flushed: bool,
    pub generation: u32,
}

impl<F: Family> Default for Summary<F> {
    fn default() -> Self {
        Self {
            nodes: 0,
            added: 0,
            updated: 0,
            removed: 0,
            left_to_kernel: Vec::new(),
            unusable: Vec::new(),
            flushed: false,
            generation: 0,
        }
    }
}

impl<F: Family> Writer<'_, F> {
    pub fn apply(
        &mut self,
        desired: &Desired<F>,
        vtep: Option<LocalVtep>,
        facts: &HostFacts<F>,
    ) -> Result<Summary<F>, DatapathError> {
        let mut wanted = wanted::wanted(desired, vtep, facts, self.fastpath);
        self.add_slow_mark(&mut wanted);
        let basis = Basis {
            local: desired.local.clone(),
            vtep,
            facts: facts.clone(),
            shared: part::shared(&wanted.nodes),
        };
        let summary = self.write(&wanted)?;
        self.written.basis = summary.left_to_kernel.is_empty().then_some(basis);
        Ok(summary)
    }

    /// As [`Self::apply`], after some peers have changed since.
    pub fn follow(
        &mut self,
        desired: &Desired<F>,
        changed: &BTreeSet<F::Network>,
        vtep: Option<LocalVtep>,
        facts: &HostFacts<F>,
    ) -> Result<Summary<F>, DatapathError> {
        let basis = self.written.basis.as_ref();
        let basis = basis.filter(|basis| {
            (&basis.local, basis.vtep, &basis.facts) == (&desired.local, vtep, facts)
        });
        let Some((basis, tables)) = basis.zip(self.written.tables.as_ref()) else {
            return self.apply(desired, vtep, facts);
        };
        let peers = changed
            .iter()
            .filter_map(|subnet| desired.peers.get(subnet));
        let mut wanted = wanted::of_peers(desired, peers, vtep, facts, self.fastpath);
        self.add_slow_mark(&mut wanted);
        let subnets = changed
            .iter()
            .map(|subnet| wanted::network_of::<F>(*subnet));
        let change = part::plan_part(
            tables,
            &subnets.collect(),
            &wanted.nodes,
            &basis.shared,
            self.maps.limits(),
        );
        let Some(change) = change else {
            return self.apply(desired, vtep, facts);
        };
        let tables = self.written.tables.take().unwrap_or_default();
        self.carry_out(change, &wanted, tables)
    }

    /// Whether what there is, is of a run in which the node had another kind of tunnel.
    pub fn has_other_tunnel(&self, tunnel: u8) -> Result<bool, DatapathError> {
        let config = self.maps.config()?;
        Ok(config.is_served() && config.tunnel != tunnel)
    }

    /// Removes what there is, of a run in which the node was configured otherwise.
    pub fn clear(&mut self) -> Result<(), DatapathError> {
        self.write(&Wanted::nothing()).map(drop)
    }

    fn add_slow_mark(&self, wanted: &mut Wanted<F>) {
        if let Some(SlowMark { value, mask }) = self.slow_mark {
            (wanted.config.slow_mark, wanted.config.slow_mask) = (value, mask);
        }
    }

    fn write(&mut self, wanted: &Wanted<F>) -> Result<Summary<F>, DatapathError> {
        self.written.basis = None;
        let tables = match self.written.tables.take() {
            Some(tables) => tables,
            None => self.maps.tables()?,
        };
        let change = plan::plan(&tables, &wanted.nodes, self.maps.limits());
        self.carry_out(change, wanted, tables)
    }

    fn carry_out(
        &mut self,
        change: MapPlan<'_, F>,
        wanted: &Wanted<F>,
        mut tables: Tables<F>,
    ) -> Result<Summary<F>, DatapathError> {
        let mut summary = Summary {
            left_to_kernel: change.left_to_kernel,
            unusable: wanted.unusable.clone(),
            ..Summary::default()
        };
        let flushes = |step: &Step<'_, F>| matches!(step, Step::Configure { flush: true });
        self.written.flush_owed |= change.steps.iter().any(flushes);
        for step in &change.steps {
            self.run(step, &wanted.config, &mut tables, &mut summary)?;
        }
        summary.nodes = tables.nodes.len();
        if summary.added > summary.nodes / 2 {
            pack(&mut tables.nodes);
            pack(&mut tables.routes);
            pack(&mut tables.peers);
        }
        self.written.tables = Some(tables);
        debug!(family = F::NAME, ?summary, "maps applied");
        Ok(summary)
    }

    /// Gives a first configuration its stamp key and generation, and leaves the short way closed. An earlier one is kept, and so is what
    /// flows have earned: nobody watched for changes that concern them, but to flush is for whoever has the
    /// kernel path as it should be.
    pub fn adopt_config(&mut self) -> Result<(), DatapathError> {
        let lock = ConfigLock::acquire(self.pins, LOCK_PATIENCE)?;
        let old = self.maps.config()?;
        if old.stamp_key != [0; 2] {
            return Ok(());
        }
        let new = Config {
            stamp_key: rand::random(),
            generation: next_generation(old.generation),
            closed: closed::UNKNOWN,
            ..old
        };
        self.maps.config.write(&old, &new, &lock)
    }

    fn run(
        &mut self,
        step: &Step<'_, F>,
        config: &Config<F>,
        tables: &mut Tables<F>,
        summary: &mut Summary<F>,
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
                    .put_node(index, tables.nodes.get(&index), node, moved)?;
                tables.nodes.insert(index, *node);
                summary.updated += 1;
            }
            Step::Configure { .. } => {
                let flush = self.written.flush_owed;
                (summary.flushed, summary.generation) = self.configure(config, flush)?;
                self.written.flush_owed = false;
            }
            Step::AddNode { index, node } => {
                self.maps.put_node(index, None, node, true)?;
                tables.nodes.insert(index, *node);
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

    /// Trusted mode waits until it is known what was translated while the programs noted nothing: before they
    /// came, and while the configuration is replaced.
    fn heed_translations(&mut self, old: &Config<F>, new: &mut Config<F>) {
        let known = &mut self.written.translations;
        if new.fastpath != FASTPATH_TRUSTED {
            *known = Translations::Unknown;
        } else if *known != Translations::Known || !is_gentle(old, new) {
            new.fastpath = FASTPATH_LEARNING;
            if *known != Translations::Hidden {
                *known = Translations::Noted;
            }
        }
    }

    /// Writes `config` with the stamp key, the generation and the state of the short way there are; under another generation if it
    /// changes or `flush` asks for it.
    fn configure(&mut self, config: &Config<F>, flush: bool) -> Result<(bool, u32), DatapathError> {
        let lock = ConfigLock::acquire(self.pins, LOCK_PATIENCE)?;
        let old = self.maps.config()?;
        let mut new = Config {
            stamp_key: old.stamp_key,
            generation: old.generation,
            closed: old.closed,
            ..*config
        };
        self.heed_translations(&old, &mut new);
        if new == old && !flush {
            return Ok((false, old.generation));
        }
        let new = Config {
            generation: next_generation(old.generation),
            ..new
        };
        self.maps.config.write(&old, &new, &lock)?;
        Ok((true, new.generation))
    }
}
