//! Loading the BPF object: maps from their pins or fresh, all programs through the verifier.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    pin::PinError,
    programs::{Program, ProgramError},
    sys::SyscallError,
};
use overlay_common::{maps, outcome::Hook};
use tracing::{info, level_filters::LevelFilter, warn};

use super::{
    DatapathError, Options,
    attach::tc,
    maps::spec::{Fit, MAPS},
    packet_log::{self, PacketLog},
    pins::{PinDir, remove_pin},
    sys::{self, Place},
};

/// How often a program is loaded whose verification is interrupted; libbpf tries five times.
const LOAD_ATTEMPTS: u32 = 10;

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

/// Capacities of the two flow tables, which are allocated whole.
#[derive(Clone, Copy, Debug)]
pub struct FlowTables {
    pub ipv4: u32,
    pub ipv6: u32,
}

impl FlowTables {
    /// Of the flow table with this name.
    fn capacity(self, map: &str) -> Option<u32> {
        match map {
            maps::FLOWS4 => Some(self.ipv4),
            maps::FLOWS6 => Some(self.ipv6),
            _ => None,
        }
    }
}

/// Loads the object on the maps pinned in `pins`, creating and pinning those that are missing.
pub fn load(
    pins: &PinDir,
    options: &Options<'_>,
    flows: FlowTables,
) -> Result<Programs, DatapathError> {
    check_pinned_maps(pins, flows)?;
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(maps::FLOWS4, flows.ipv4);
    loader.map_max_entries(maps::FLOWS6, flows.ipv6);
    for spec in MAPS {
        loader.map_pin_path(spec.name, pins.map(spec.name));
    }
    let log_level = packet_log::level(options.log);
    if options.log != LevelFilter::OFF {
        loader.override_global(aya_log::LEVEL, &log_level, true);
    }
    let mut ebpf = loader.load(options.object).map_err(object_error)?;
    let log = match options.log {
        LevelFilter::OFF => None,
        _ => Some(PacketLog::of(&mut ebpf)?),
    };
    let ingress = load_program(&mut ebpf, &program_name(Hook::Ingress))?;
    let tcx = has_tcx(&ingress);
    if !tcx {
        tc::probe(&ingress).map_err(|source| DatapathError::NoHook { source })?;
        info!("no tcx links, which Linux 6.6 has: programs are attached as tc filters");
    }
    let mut by_hook = BTreeMap::from([(Hook::Ingress, ingress)]);
    for &hook in Hook::ALL.iter().filter(|&&hook| hook != Hook::Ingress) {
        let result = match load_program(&mut ebpf, &program_name(hook)) {
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

/// Whether the kernel stopped verifying because the thread has something else to do, a signal for
/// one (`do_check` in the kernel).
fn is_interruption(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.raw_os_error() == Some(libc::EAGAIN))
}

/// The name of the program for `hook` in the object.
pub fn program_name(hook: Hook) -> String {
    format!("overlay_{}", hook.name())
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

/// aya adopts whatever is pinned, so the layout is compared first. A flow table of another capacity
/// is replaced: it is a cache.
fn check_pinned_maps(pins: &PinDir, flows: FlowTables) -> Result<(), DatapathError> {
    for mut spec in MAPS {
        let capacity = flows.capacity(spec.name);
        if let Some(entries) = capacity {
            spec.max_entries = per_cpu_capacity(entries)?;
        }
        let path = pins.map(spec.name);
        match spec.compare(&path) {
            None | Some(Fit::Same) => {}
            Some(Fit::Resized { .. }) if capacity.is_some() => remove_pin(&path)?,
            Some(Fit::Resized { found }) => {
                return Err(DatapathError::Layout {
                    path,
                    found: format!("{found} entries"),
                    wanted: format!("{} entries", spec.max_entries),
                });
            }
            Some(Fit::Different { found, wanted }) => {
                return Err(DatapathError::Layout {
                    path,
                    found,
                    wanted,
                });
            }
        }
    }
    Ok(())
}

/// What the kernel makes of `entries` in a table with one LRU list per CPU: a multiple of the
/// number of possible CPUs (`htab_map_alloc`).
fn per_cpu_capacity(entries: u32) -> Result<usize, DatapathError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, source)| DatapathError::HostFact {
            path: path.into(),
            source,
        })?
        .max(1);
    Ok((entries as usize).next_multiple_of(cpus))
}

/// Linux 6.6 looks the interface up, which fails for index 0; older kernels do not know the
/// attach type.
fn has_tcx(program: &LoadedProgram) -> bool {
    let attempt = sys::link_create(program.fd.as_fd(), 0, Place::TcxIngress, 0);
    !attempt.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

/// `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_SYS_ADMIN: u32 = 21;

/// Tells a missing capability from other refusals, which the kernel reports alike.
pub fn require_capabilities() -> Result<(), DatapathError> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS).map_err(|source| DatapathError::HostFact {
        path: STATUS.into(),
        source,
    })?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(DatapathError::NoPermission {
            missing: missing.join(", "),
        })
    }
}

/// What `/proc/self/status` lacks. CAP_SYS_ADMIN includes the BPF capabilities.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    CAPABILITIES
        .into_iter()
        .filter(|&(number, name)| !has(number) && (name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)))
        .map(|(_, name)| name)
        .collect()
}

fn program_error(name: &str, error: ProgramError) -> DatapathError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } if !is_refusal(&io_error) => DatapathError::Verifier {
            program: name.to_owned(),
            source: io_error,
            log: verifier_log.to_string(),
        },
        // The verifier also says EPERM, and then explains itself.
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            if log.trim().is_empty() {
                DatapathError::Refused {
                    step: "loading a program",
                    source: io_error,
                }
            } else {
                DatapathError::Verifier {
                    program: name.to_owned(),
                    source: io_error,
                    log,
                }
            }
        }
        other => DatapathError::Object {
            source: EbpfError::ProgramError(other),
        },
    }
}

fn object_error(error: EbpfError) -> DatapathError {
    match error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) if is_refusal(&io_error) => {
            DatapathError::Refused {
                step: "creating a map",
                source: io_error,
            }
        }
        EbpfError::MapError(MapError::PinError {
            error: PinError::SyscallError(SyscallError { io_error, .. }),
            ..
        }) if is_refusal(&io_error) => DatapathError::Refused {
            step: "pinning a map",
            source: io_error,
        },
        source => DatapathError::Object { source },
    }
}

/// `ENOSYS`: the kernel was built without BPF, or a seccomp filter says so.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let status = |mask: u64| format!("Name:\tx\nCapEff:\t{mask:016x}\n");
        assert_eq!(
            missing_capabilities(&status(0)),
            ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]
        );
        assert!(missing_capabilities(&status(1 << 12 | 1 << 21)).is_empty());
        assert_eq!(
            missing_capabilities(&status(1 << 12 | 1 << 39)),
            ["CAP_PERFMON"]
        );
        assert_eq!(missing_capabilities(&status(1 << 21)), ["CAP_NET_ADMIN"]);
    }
}
