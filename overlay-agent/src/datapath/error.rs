//! What can go wrong with the eBPF tier; each message names the remedy.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, maps::MapError};

use super::absence::Absence;

/// Lines of a verifier's log that say why it refuses.
const REASON: usize = 5;
/// How the lines begin that follow the reason.
const FIGURES: [&str; 3] = ["verification time ", "stack depth ", "processed "];

/// Why the eBPF tier cannot be brought up, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error(
        "{path} is not on a BPF file system: mount one (`mount -t bpf bpf /sys/fs/bpf`) or choose \
         a directory on one with --pin-dir"
    )]
    NoBpffs { path: PathBuf },

    #[error("cannot mount the BPF file system at {path}: {source}; mount it before the start")]
    Mount { path: PathBuf, source: io::Error },

    #[error("cannot {action} {path}: {source}")]
    Pin {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error(
        "{path} belongs to user {owner}: only the user the agent runs as may write there; remove it \
         or choose another --pin-dir"
    )]
    ForeignDirectory { path: PathBuf, owner: u32 },

    #[error(
        "{pin_dir} is in use by another overlay-agent: stop that one, or give this one its own \
         --pin-dir (one per network namespace)"
    )]
    InUse { pin_dir: PathBuf },

    #[error(
        "{holder} keeps the configuration in {dir} locked: if it is an `overlay-agent flush` that was \
         stopped, continue or end it"
    )]
    ConfigLocked { dir: PathBuf, holder: String },

    #[error(
        "nothing is pinned in {dir}: the agent has not run with the eBPF tier, or it uses another \
         directory (--pin-dir)"
    )]
    NotPinned { dir: PathBuf },

    #[error("this node has the kernel tier alone, and nothing is pinned: {absence}")]
    KernelTier { absence: Absence },

    #[error("{dir} is open only to the user the agent runs as: run this as root")]
    Private { dir: PathBuf },

    #[error(
        "the pinned map {path} has another layout ({found}; needed: {wanted}): it was left by a \
         different build. Stop the agent and `rm -r {}`; pods keep talking through the kernel tier",
        path.parent().unwrap_or(path).display()
    )]
    Layout {
        path: PathBuf,
        found: String,
        wanted: String,
    },

    #[error(
        "no permission to use BPF, missing {missing}: run as root or grant CAP_NET_ADMIN, CAP_BPF \
         and CAP_PERFMON (CAP_SYS_ADMIN to mount the BPF file system)"
    )]
    NoPermission { missing: String },

    #[error(
        "the kernel refuses BPF although the capabilities are there ({step}: {source}): look for a \
         seccomp filter, kernel lockdown, a user namespace or a security module"
    )]
    Refused {
        step: &'static str,
        source: io::Error,
    },

    #[error(
        "this kernel has no tcx links, which come with Linux 6.6 and CONFIG_NET_XGRESS, and takes no \
         bpf filters on a clsact qdisc instead ({source}): CONFIG_NET_CLS_BPF and \
         CONFIG_NET_SCH_INGRESS are needed; without them run with --datapath=kernel"
    )]
    NoHook { source: io::Error },

    #[error("the kernel's verifier rejected {program}: {source}\n{}", reason(log))]
    Verifier {
        program: String,
        source: io::Error,
        /// All that the verifier said.
        log: String,
    },

    #[error("the BPF object does not load: {source}")]
    Object { source: EbpfError },

    #[error("cannot read what the programs log: {source}")]
    Log { source: aya_log::Error },

    #[error("the BPF object has no program {program}: rebuild it with `cargo xtask build-ebpf`")]
    MissingProgram { program: String },

    #[error("cannot {action} in map {map}: {source}")]
    Map {
        action: &'static str,
        map: &'static str,
        source: MapError,
    },

    #[error("cannot read map {map}: {source}")]
    Read {
        map: &'static str,
        source: io::Error,
    },

    #[error("cannot see what others have of tc: {source}")]
    Others { source: io::Error },

    #[error("cannot {action} {hook} on {ifname}: {source}")]
    Link {
        action: &'static str,
        hook: &'static str,
        ifname: String,
        source: io::Error,
    },

    #[error("cannot read the monotonic clock: {source}")]
    Clock { source: io::Error },

    #[error("cannot list what conntrack knows: {source}")]
    Conntrack { source: io::Error },

    #[error("cannot read {path}: {source}")]
    HostFact { path: PathBuf, source: io::Error },

    #[error("{path} contains {found:?}, which is not {wanted}")]
    HostFactSyntax {
        path: PathBuf,
        found: String,
        wanted: &'static str,
    },
}

pub fn pin_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Pin {
        action,
        path,
        source,
    }
}

/// The end of a verifier's log, where the reason is.
fn reason(log: &str) -> String {
    let is_figure = |line: &&str| FIGURES.iter().any(|figure| line.starts_with(figure));
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| !line.trim().is_empty() && !is_figure(line))
        .collect();
    lines[lines.len().saturating_sub(REASON)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_the_reason_and_not_the_whole_log() {
        let walked = "7: (bf) r6 = r1\n".repeat(400);
        let log = format!(
            "{walked}; let now = bpf_ktime();\n30: (85) call unknown#160\n\
             invalid func unknown#160\nverification time 1 usec\nstack depth 0+0\n\
             processed 400 insns (limit 1000000)\n"
        );
        let error = DatapathError::Verifier {
            program: "overlay_egress".into(),
            source: io::Error::from_raw_os_error(libc::EINVAL),
            log,
        };
        let text = error.to_string();
        assert!(text.ends_with("invalid func unknown#160"), "{text}");
        assert_eq!(text.lines().count(), 1 + REASON, "{text}");
    }
}
