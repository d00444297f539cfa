//! Tier 1: the BPF programs, their maps and where they are attached.
//!
//! Everything the programs need is pinned below `--pin-dir` ([`pins`]), so that they keep
//! forwarding while no agent runs, and a starting agent takes over what it finds: maps as they
//! are, links by switching them to its own programs.
//!
//! [`Datapath`] is the writing side; there is one per pin directory. [`Maps`] opens the same maps
//! for reading, agent or no agent.

mod absence;
mod attach;
mod attachment;
mod counters;
mod error;
mod flusher;
mod host;
mod lent;
mod load;
mod maps;
mod netlink;
mod offload;
mod packet_event;
mod packet_log;
mod pins;
mod programs;
mod removal;
mod short_way;
mod slow;
pub mod sys;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    marker::PhantomData,
    net::IpAddr,
    path::PathBuf,
};

use overlay_common::{addr::MacAddr, config::FASTPATH_OFF};
use tracing::level_filters::LevelFilter;

pub use self::{
    absence::Absence,
    attach::{LinkSummary, states as link_states},
    attachment::{Attached, Attachment, LinkState, XdpMode},
    counters::FastShare,
    error::DatapathError,
    flusher::{Flushed, Flusher, Generations},
    host::{HostFacts, PermitTimes, permit_clock},
    lent::{Lent, Loan},
    maps::{Maps, overlay::OverlayMaps, stats::Stats},
    offload::{leaves_open, unsummed},
    packet_event::PacketEvent,
    packet_log::{Message, PACKETS, PacketLog, Taker},
    pins::{DEFAULT_PIN_DIR, PinDir},
    short_way::{ShortWay, reasons as short_way_closed},
    slow::SlowFlows,
    tables::{Summary, wanted::LocalVtep},
};
use self::{
    load::FlowTables,
    packet_log::Logging,
    programs::Programs,
    tables::{Translations, Writer, Written},
};
pub use crate::config::{Fastpath, SlowMark};
use crate::model::{ByFamily, Desired, Family, PerFamily, V4, V6, each_family};

/// Capacity of the flow table of a family without pods: the kernel does not make one without any.
const UNSERVED_FLOWS: u32 = 1;

#[derive(Clone, Debug)]
pub struct Options<'a> {
    pub pin_dir: PathBuf,
    /// The BPF object (ELF).
    pub object: &'a [u8],
    /// Which packets the programs log. Anything but `OFF` needs the flavour of the object that can.
    pub log: LevelFilter,
    /// Capacity of the flow table of each family served.
    pub max_flows: u32,
    pub serves: Serves,
    pub fastpath: Fastpath,
    /// Keeps the flows of packets with this mark off the fast path.
    pub slow_mark: Option<SlowMark>,
    /// Which tunnel's programs are loaded: one of the `TUNNEL_*` values.
    pub tunnel: u8,
}

/// The families a node has pods of.
pub type Serves = PerFamily<bool>;

/// The loaded programs and the maps they use.
pub struct Datapath {
    pins: PinDir,
    programs: Programs,
    /// What runs instead of them for the time being.
    lent: Option<Programs>,
    maps: Maps,
    flusher: Flusher,
    written: PerFamily<Written<V4>, Written<V6>>,
    /// Gateways were changed, and the flush that belongs to it failed.
    flush_owed: bool,
    fastpath: Fastpath,
    slow_mark: Option<SlowMark>,
    /// Held while this agent owns the pin directory.
    _lock: File,
}

impl Datapath {
    /// Loads the programs on the maps pinned in `options.pin_dir`, creating what is missing.
    /// Programs of an earlier agent stay attached until [`Self::sync_links`].
    pub fn open(options: &Options<'_>) -> Result<Self, DatapathError> {
        let pins = PinDir::new(&options.pin_dir);
        load::require_capabilities()?;
        let lock = pins.prepare()?;
        let capacity = |serves| {
            if serves {
                options.max_flows
            } else {
                UNSERVED_FLOWS
            }
        };
        let flows = FlowTables {
            ipv4: capacity(options.serves.ipv4),
            ipv6: capacity(options.serves.ipv6),
        };
        let logging = Logging::lines(options.log);
        let programs = load::load(&pins, options.object, logging, flows, options.tunnel)?;
        let maps = Maps::open(&pins)?;
        let flusher = Flusher::open(&pins)?;
        let mut datapath = Self {
            pins,
            programs,
            lent: None,
            maps,
            flusher,
            written: PerFamily::default(),
            flush_owed: false,
            fastpath: options.fastpath,
            slow_mark: options.slow_mark,
            _lock: lock,
        };
        each_family!(datapath.writers(), mut writer => writer.adopt_config()?);
        each_family!(datapath.writers().zip(options.serves), (mut writer, serves) => {
            // The programs of another tunnel run on, and would send what is meant for these.
            if !serves || writer.has_other_tunnel(options.tunnel)? {
                writer.clear()?;
            }
        });
        Ok(datapath)
    }

    /// Brings nodes, routes, peers and configuration of a family to what `desired` says.
    pub fn apply<F: Family>(
        &mut self,
        desired: &Desired<F>,
        vtep: Option<LocalVtep>,
        facts: &HostFacts<F>,
    ) -> Result<Summary<F>, DatapathError> {
        let mut writer = F::pick::<WriterOf<'_>>(self.writers());
        writer.apply(desired, vtep, facts)
    }

    /// As [`Self::apply`], after some peers have changed since.
    pub fn follow<F: Family>(
        &mut self,
        desired: &Desired<F>,
        changed: &BTreeSet<F::Network>,
        vtep: Option<LocalVtep>,
        facts: &HostFacts<F>,
    ) -> Result<Summary<F>, DatapathError> {
        let mut writer = F::pick::<WriterOf<'_>>(self.writers());
        writer.follow(desired, changed, vtep, facts)
    }

    /// Whether the programs carry what they can of IPv4 packets.
    pub fn is_fast(&self) -> bool {
        let config = self.maps.overlays.ipv4.config();
        config.is_ok_and(|config| config.fastpath != FASTPATH_OFF)
    }

    /// Whether trusted mode waits for [`Self::note_translated`] in a family: the programs note what is translated from
    /// now on.
    pub fn asks_for_translations(&self) -> bool {
        let written = self.written.as_ref();
        let asks = each_family!(written, written => written.translations == Translations::Noted);
        asks.into_iter().any(|asks| asks)
    }

    /// Takes over which addresses the packets of translated connections have where they enter the host. With the
    /// next [`Self::apply`], the pods of each other pair have one permit for all of their flows.
    pub fn note_translated(&mut self, connections: &[[IpAddr; 2]]) -> Result<(), DatapathError> {
        let slots =
            each_family!(self.maps.overlays.as_ref(), maps => maps.pair_slots(connections)?);
        for slot in slots.into_iter().flatten() {
            self.maps.mark_translated(slot)?;
        }
        each_family!(self.written.as_mut(), written => {
            if written.translations == Translations::Noted {
                written.translations = Translations::Known;
            }
        });
        Ok(())
    }

    /// There is no way to know what [`Self::note_translated`] asks for.
    pub fn forgo_pairs(&mut self) {
        each_family!(self.written.as_mut(), written => {
            if written.translations == Translations::Noted {
                written.translations = Translations::Hidden;
            }
        });
    }

    fn writers(&mut self) -> PerFamily<Writer<'_, V4>, Writer<'_, V6>> {
        let maps = self.maps.overlays.as_mut();
        each_family!(maps.zip(self.written.as_mut()), (maps, written) => Writer {
            pins: &self.pins,
            maps,
            written,
            fastpath: self.fastpath,
            slow_mark: self.slow_mark,
        })
    }

    /// What the programs log; once, and only if they do.
    pub fn take_log(&mut self) -> Option<PacketLog> {
        self.programs.log.take()
    }

    /// With the next [`Self::sync_links`] programs that another process has loaded on these maps run instead of this
    /// agent's own, or no longer. Returns whether that is a change.
    pub fn borrow_programs(&mut self, lent: Option<Lent>) -> bool {
        let is_change = lent.is_some() || self.lent.is_some();
        self.lent = lent.map(|lent| lent.into_programs(self.programs.tcx));
        is_change
    }

    /// Reads the maps again at the next [`Self::apply`], which then repairs what someone else
    /// changed in them.
    pub fn distrust_tables(&mut self) {
        each_family!(self.written.as_mut(), written => written.tables = None);
    }

    /// The interfaces through which the host's IP layer receives pod packets, with their MAC
    /// addresses. True if flows have to earn their permits again because of it. One that cannot be written
    /// keeps the others from nothing.
    pub fn set_gateways(&mut self, wanted: &BTreeMap<u32, MacAddr>) -> Result<bool, DatapathError> {
        let observed = self.maps.gateways()?;
        let mut results = Vec::new();
        let mut affects_flows = false;
        for &ifindex in observed
            .keys()
            .filter(|ifindex| !wanted.contains_key(ifindex))
        {
            results.push(self.maps.remove_gateway(ifindex));
            affects_flows = true;
        }
        for (&ifindex, &mac) in wanted {
            let before = observed.get(&ifindex);
            if before != Some(&mac) {
                results.push(self.maps.put_gateway(ifindex, mac));
                affects_flows |= before.is_some();
            }
        }
        self.flush_owed |= affects_flows;
        if self.flush_owed {
            let flushed = self.flush().map(drop);
            self.flush_owed = flushed.is_err();
            results.push(flushed);
        }
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(affects_flows)
    }

    /// Makes every flow earn its permit again.
    pub fn flush(&mut self) -> Result<Generations, DatapathError> {
        self.flusher.flush().map(|flushed| flushed.generations)
    }

    /// Another handle on the configuration, for flushes that wait for nothing else.
    pub fn flusher(&self) -> Result<Flusher, DatapathError> {
        Flusher::open(&self.pins)
    }

    /// The writing side of what the packet filter judges packet by packet.
    pub fn slow_flows(&self) -> Result<SlowFlows, DatapathError> {
        SlowFlows::open(&self.pins)
    }

    /// What keeps the short way open or closed.
    pub fn short_way(&self) -> Result<ShortWay, DatapathError> {
        ShortWay::open(&self.pins)
    }

    /// Attaches to exactly `wanted`: takes over pinned links, creates missing ones, removes the
    /// others, defunct ones included. Once every link runs this agent's programs, maps of other ABI
    /// versions go.
    pub fn sync_links(&mut self, wanted: &BTreeSet<Attachment>) -> LinkSummary {
        let programs = self.lent.as_ref().unwrap_or(&self.programs);
        let mut summary = attach::sync(&self.pins, programs, wanted);
        if summary.failed.is_empty() {
            summary.left.extend(self.pins.remove_other_versions().err());
        }
        summary
    }
}

struct WriterOf<'a>(PhantomData<&'a ()>);

impl<'a> ByFamily for WriterOf<'a> {
    type Of<F: Family> = Writer<'a, F>;
}
