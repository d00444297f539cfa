//! Loading the BPF object: maps from their pins or fresh, all programs through the verifier.

mod blind;
mod pinned;
mod refusal;
mod undisturbed;

use std::{collections::BTreeMap, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{Program, ProgramError},
};
use caps::{CapSet, Capability, CapsHashSet};
use overlay_common::{maps, outcome::Hook};
use tracing::{info, level_filters::LevelFilter, warn};

pub use self::pinned::FlowTables;
use self::{
    pinned::check_pinned_maps,
    refusal::{object_error, program_error},
    undisturbed::Undisturbed,
};
use super::{
    attach::{tc, tcx},
    error::DatapathError,
    packet_log::{self, Logging, PacketLog},
    pins::PinDir,
    programs::{LoadedProgram, Programs, name_for},
};

/// How often a program is loaded whose verification is interrupted; libbpf tries five times.
const LOAD_ATTEMPTS: u32 = 10;

/// Loads the programs for a tunnel, one of the `TUNNEL_*` values, on the maps pinned in `pins`, creating and pinning
/// those that are missing.
/// Any `logging` but at level `OFF` needs an object that can.
pub fn load(
    pins: &PinDir,
    object: &[u8],
    logging: Logging,
    flows: FlowTables,
    tunnel: u8,
) -> Result<Programs, DatapathError> {
    check_pinned_maps(pins, flows)?;
    // It reads and parses the type information of the kernel, 34 MiB of memory, which no program here
    // needs. It goes without where there is none to be read.
    let mut loader = blind::run(EbpfLoader::new);
    loader.map_max_entries(maps::FLOWS4, flows.ipv4);
    loader.map_max_entries(maps::FLOWS6, flows.ipv6);
    for spec in maps::TABLE {
        loader.map_pin_path(spec.name, pins.map(spec.name));
    }
    let Logging { level, reader } = logging;
    let log_level = packet_log::level(level);
    if level != LevelFilter::OFF {
        loader.override_global(aya_log::LEVEL, &log_level, true);
    }
    let mut ebpf = loader.load(object).map_err(object_error)?;
    let log = match level {
        LevelFilter::OFF => None,
        _ => Some(PacketLog::of(&mut ebpf, reader)?),
    };
    let _undisturbed = Undisturbed::begin();
    let ingress = load_program(&mut ebpf, &name_for(Hook::Ingress, tunnel))?;
    let tcx = tcx::is_there(&ingress);
    if !tcx {
        tc::probe(&ingress).map_err(|source| DatapathError::NoHook { source })?;
        info!("no tcx links, which Linux 6.6 has: programs are attached as tc filters");
    }
    let mut by_hook = BTreeMap::from([(Hook::Ingress, ingress)]);
    for &hook in Hook::ALL.iter().filter(|&&hook| hook != Hook::Ingress) {
        let result = match load_program(&mut ebpf, &name_for(hook, tunnel)) {
            Err(_) if hook == Hook::Guard => load_program(&mut ebpf, GUARD_WITHOUT_FRAGMENTS),
            other => other,
        };
        match result {
            Ok(program) => drop(by_hook.insert(hook, program)),
            Err(error) if hook == Hook::Guard && !tcx => {
                warn!(%error, "this kernel does not take the XDP guard");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Programs { by_hook, tcx, log })
}

/// Whether the kernel stopped verifying because the thread has something else to do (`do_check` in the
/// kernel), for all that [`Undisturbed`] keeps away.
fn is_interruption(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.raw_os_error() == Some(libc::EAGAIN))
}

/// The guard for kernels before Linux 5.18, which know no XDP on packets of several fragments.
const GUARD_WITHOUT_FRAGMENTS: &str = "overlay_guard_1";

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<LoadedProgram, DatapathError> {
    let missing = || DatapathError::MissingProgram {
        program: name.to_owned(),
    };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    let mut attempts = 1;
    loop {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => return Err(missing()),
        };
        match loaded {
            Ok(()) => break,
            Err(error) if is_interruption(&error) && attempts < LOAD_ATTEMPTS => attempts += 1,
            Err(error) => return Err(program_error(name, error)),
        }
    }
    let fd = program
        .fd()
        .and_then(|fd| Ok(fd.as_fd().try_clone_to_owned()?));
    let id = program.info().map(|info| info.id());
    match (fd, id) {
        (Ok(fd), Ok(id)) => Ok(LoadedProgram { fd, id }),
        (Err(error), _) | (_, Err(error)) => Err(DatapathError::Object {
            source: EbpfError::ProgramError(error),
        }),
    }
}

const CAPABILITIES: [Capability; 3] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_BPF,
];

/// Tells a missing capability from other refusals, which the kernel reports alike.
pub fn require_capabilities() -> Result<(), DatapathError> {
    let Ok(effective) = caps::read(None, CapSet::Effective) else {
        // The kernel's own refusal has to do.
        return Ok(());
    };
    let missing = missing_capabilities(&effective);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(DatapathError::NoPermission {
            missing: missing.join(", "),
        })
    }
}

/// What a set of capabilities lacks. CAP_SYS_ADMIN includes the BPF capabilities.
fn missing_capabilities(effective: &CapsHashSet) -> Vec<String> {
    let for_bpf = effective.contains(&Capability::CAP_SYS_ADMIN);
    let is_missing = |capability: &Capability| {
        let included = for_bpf && *capability != Capability::CAP_NET_ADMIN;
        !included && !effective.contains(capability)
    };
    let missing = CAPABILITIES.into_iter().filter(is_missing);
    missing.map(|capability| capability.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN};

        let missing =
            |effective: &[Capability]| missing_capabilities(&effective.iter().copied().collect());
        assert_eq!(missing(&[]), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert!(missing(&[CAP_NET_ADMIN, CAP_SYS_ADMIN]).is_empty());
        assert_eq!(missing(&[CAP_NET_ADMIN, CAP_BPF]), ["CAP_PERFMON"]);
        assert_eq!(missing(&[CAP_SYS_ADMIN]), ["CAP_NET_ADMIN"]);
    }
}
