//! Kernels that refuse BPF, imitated on one that does not: a seccomp filter in the child fails
//! bpf(2) the way they do.

use std::{io, os::unix::process::CommandExt as _, process::Command};

/// What the imitated kernel refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfDenial {
    /// Every bpf(2) fails with EPERM: a container without the capability, or a lockdown.
    Everything,
    /// `BPF_LINK_CREATE` fails with EINVAL: Linux before 6.6, which has no tcx.
    Links,
    /// `BPF_MAP_LOOKUP_BATCH` fails with ENOTSUPP, as it does for tries before Linux 5.13.
    Batches,
}

/// Of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_LINK_CREATE: u32 = 28;
/// The kernel's own, of `linux/errno.h`.
const ENOTSUPP: i32 = 524;
/// Offsets in `struct seccomp_data`; the low half of the first argument on little-endian machines.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_COMMAND: u32 = 16;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's encoding of instructions"
)]
fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

/// Skips `otherwise` instructions unless the loaded word is `value`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's encoding of instructions"
)]
fn unless_equal(value: u32, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: otherwise,
        k: value,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's encoding of instructions"
)]
fn answer(action: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: action,
    }
}

fn filter(denial: BpfDenial) -> Vec<libc::sock_filter> {
    let bpf = u32::try_from(libc::SYS_bpf).unwrap_or(u32::MAX);
    let fail = |errno: i32| answer(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let without = |command, errno| {
        vec![
            load(OFFSET_NUMBER),
            unless_equal(bpf, 3),
            load(OFFSET_COMMAND),
            unless_equal(command, 1),
            fail(errno),
            allow,
        ]
    };
    match denial {
        BpfDenial::Everything => {
            vec![
                load(OFFSET_NUMBER),
                unless_equal(bpf, 1),
                fail(libc::EPERM),
                allow,
            ]
        }
        BpfDenial::Links => without(BPF_LINK_CREATE, libc::EINVAL),
        BpfDenial::Batches => without(BPF_MAP_LOOKUP_BATCH, ENOTSUPP),
    }
}

/// Runs `command` on the imitated kernel.
pub fn deny_bpf(command: &mut Command, denial: BpfDenial) {
    let mut instructions = filter(denial);
    // SAFETY: the closure runs between fork and exec and makes one system call; the vector it owns is
    // there already, nothing is allocated.
    unsafe { command.pre_exec(move || install(&mut instructions)) };
}

/// Puts the calling thread on the imitated kernel, for good.
pub fn deny_bpf_here(denial: BpfDenial) -> io::Result<()> {
    install(&mut filter(denial))
}

fn install(instructions: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).unwrap_or(0),
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the program points to `len` instructions that outlive the call, which copies them.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_on_an_answer() {
        for denial in [BpfDenial::Everything, BpfDenial::Links, BpfDenial::Batches] {
            let program = filter(denial);
            for (index, instruction) in program.iter().enumerate() {
                let target = index + 1 + usize::from(instruction.jf);
                let is_jump = u32::from(instruction.code) & 7 == libc::BPF_JMP;
                let lands = program
                    .get(target)
                    .is_some_and(|target| u32::from(target.code) & 7 == libc::BPF_RET);
                assert!(!is_jump || lands, "{denial:?}: instruction {index}");
            }
        }
    }
}
