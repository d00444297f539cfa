//! The programs as the kernel has them.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use overlay_common::outcome::Hook;

use super::packet_log::PacketLog;

/// A program in the kernel.
#[derive(Debug)]
pub struct LoadedProgram {
    pub fd: OwnedFd,
    pub id: u32,
}

/// The programs, and how this kernel attaches them.
#[derive(Debug)]
pub struct Programs {
    pub by_hook: BTreeMap<Hook, LoadedProgram>,
    /// Linux 6.6; an older one runs them by tc filters.
    pub tcx: bool,
    /// What they log, if they do.
    pub log: Option<PacketLog>,
}

/// The name of the program for `hook` in the object.
pub fn program_name(hook: Hook) -> String {
    format!("overlay_{}", hook.name())
}
