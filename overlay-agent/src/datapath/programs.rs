//! The programs as the kernel has them.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use overlay_common::{config::TUNNEL_UDP, outcome::Hook};

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

/// The name of the program for `hook` in the object, of nodes with this tunnel.
pub fn name_for(hook: Hook, tunnel: u8) -> String {
    let name = program_name(hook);
    match hook {
        Hook::Egress | Hook::Confirm | Hook::Ingress | Hook::Arrive if tunnel == TUNNEL_UDP => {
            format!("{name}_udp")
        }
        _ => name,
    }
}

/// What the program for `hook` is called, whatever the tunnel.
pub fn program_name(hook: Hook) -> String {
    format!("overlay_{}", hook.name())
}
