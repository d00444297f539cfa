//! Programs of another flavour that another process has loaded on the pinned maps, for as long as it lives.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use overlay_common::outcome::Hook;
use tracing::level_filters::LevelFilter;

use super::{
    error::DatapathError,
    load::{self, FlowTables},
    maps::Maps,
    packet_log::{Logging, PacketLog, Reader, Taker},
    pins::PinDir,
    programs::{LoadedProgram, Programs},
};

/// What the process has that lends them.
pub struct Loan {
    programs: Programs,
}

/// What the agent has that runs them.
pub struct Lent {
    by_hook: BTreeMap<Hook, LoadedProgram>,
}

impl Loan {
    /// Loads the programs of `object`, which tell `take` of packets down to `level`. They use the maps that are pinned
    /// as those are.
    pub fn load(
        pins: &PinDir,
        object: &[u8],
        level: LevelFilter,
        take: Taker,
    ) -> Result<Self, DatapathError> {
        load::require_capabilities()?;
        let maps = Maps::open(pins)?;
        // Flow tables of another capacity would be replaced.
        let flows = FlowTables {
            ipv4: maps.overlays.ipv4.max_flows(),
            ipv6: maps.overlays.ipv6.max_flows(),
        };
        let tunnel = maps.overlays.ipv4.config()?.tunnel;
        let logging = Logging {
            level,
            reader: Reader::Taker(take),
        };
        let programs = load::load(pins, object, logging, flows, tunnel)?;
        Ok(Self { programs })
    }

    /// The programs by hook, with their ids.
    pub fn programs(&self) -> impl Iterator<Item = (Hook, u32, BorrowedFd<'_>)> {
        let programs = self.programs.by_hook.iter();
        programs.map(|(hook, program)| (*hook, program.id, program.fd.as_fd()))
    }

    /// What they say; once.
    pub fn take_log(&mut self) -> Option<PacketLog> {
        self.programs.log.take()
    }
}

impl Lent {
    /// `None` unless there is a program for every hook of tc.
    pub fn new(programs: impl IntoIterator<Item = (Hook, u32, OwnedFd)>) -> Option<Self> {
        let programs = programs.into_iter();
        let by_hook: BTreeMap<_, _> = programs
            .map(|(hook, id, fd)| (hook, LoadedProgram { fd, id }))
            .collect();
        let mut hooks = Hook::CLASSIFIERS.iter();
        hooks
            .all(|hook| by_hook.contains_key(hook))
            .then_some(Self { by_hook })
    }

    pub(super) fn into_programs(self, tcx: bool) -> Programs {
        Programs {
            by_hook: self.by_hook,
            tcx,
            log: None,
        }
    }
}
