//! A hand-assembled program that gives a test run what its context cannot: a hash and a VLAN tag on
//! the packet, a packet cut short, and several programs in a row on one packet, as it meets them on its way through a
//! host.
//!
//! A test run with `repeat` does not reset the packet between the runs. Each run of the dispatcher
//! reads from `cb` which step is due and tail-calls the program of that step, or at last reports
//! the packet's hash.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{self, SkBuff};

/// Steps that fit the word of `cb` that holds them.
const STEPS: usize = 4;

/// The step that copies the packet's hash to `cb`.
const REPORT: u32 = 0xff;

/// What the dispatcher returns when a tail call failed; no verdict.
pub const TAIL_CALL_FAILED: u32 = 0xdead;

/// Words of `cb`.
mod cb {
    pub const STEP: usize = 0;
    pub const HASH: usize = 1;
    /// Tag control information, with bit 16 set to tell tag 0 from no tag.
    pub const VLAN: usize = 2;
    /// Index of the program of step n in byte n.
    pub const PROGRAMS: usize = 3;
    /// Length to cut the packet to, or 0.
    pub const CUT: usize = 4;
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a> {
    /// The packet's hash before the first program.
    pub hash: u32,
    /// Tag control information of a VLAN tag outside the packet's bytes.
    pub vlan: Option<u16>,
    /// Length the packet is cut to: a test run takes no IP packet without a whole IP header.
    pub cut: Option<u32>,
    /// Indexes of the programs to run one after the other.
    pub programs: &'a [u32],
    /// Whether to end with a report of the hash instead of the last program's verdict.
    pub report: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Verdict(u32),
    Hash(u32),
}

pub struct Dispatcher {
    program: OwnedFd,
    /// Keeps the array alive that `program` tail-calls through.
    _programs: OwnedFd,
}

impl Dispatcher {
    /// For `programs`, which scripts name by their position.
    pub fn new(programs: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let count = u32::try_from(programs.len()).map_err(io::Error::other)?;
        let array = sys::program_array_create(count)?;
        for (index, &program) in (0..).zip(programs) {
            sys::program_array_set(array.as_fd(), index, program)?;
        }
        Ok(Self {
            program: sys::classifier_load(&instructions(array.as_fd()))?,
            _programs: array,
        })
    }

    pub fn run(
        &self,
        script: Script<'_>,
        frame: &mut Vec<u8>,
        context: &mut SkBuff,
    ) -> io::Result<End> {
        let steps: Vec<u32> = script
            .programs
            .iter()
            .copied()
            .chain(script.report.then_some(REPORT))
            .collect();
        if steps.len() > STEPS {
            return Err(io::Error::other(format!(
                "more than {STEPS} steps: {steps:?}"
            )));
        }
        context.cb[cb::HASH] = script.hash;
        context.cb[cb::VLAN] = script.vlan.map_or(0, |tci| 1 << 16 | u32::from(tci));
        context.cb[cb::CUT] = script.cut.unwrap_or(0);
        context.cb[cb::PROGRAMS] = steps.iter().rev().fold(0, |all, step| all << 8 | step);
        let repeat = u32::try_from(steps.len()).map_err(io::Error::other)?;
        let verdict = sys::test_run(self.program.as_fd(), frame, context, repeat, 0)?;
        Ok(if script.report {
            End::Hash(context.cb[cb::HASH])
        } else {
            End::Verdict(verdict)
        })
    }
}

/// One instruction: `struct bpf_insn`. Jumps go forward only.
const fn insn(code: u8, dst: u8, src: u8, offset: u16, immediate: u32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u64) << 16
        | (immediate as u64) << 32
}

/// The program. Registers: 6 context, 7 step, 8 all programs and then the step's.
fn instructions(programs: BorrowedFd<'_>) -> [u64; 36] {
    use std::{mem::offset_of, os::fd::AsRawFd as _};

    const MOV_REG: u8 = 0xbf;
    const MOV: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const AND: u8 = 0x57;
    const SHIFT_LEFT: u8 = 0x67;
    const SHIFT_RIGHT_REG: u8 = 0x7f;
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x63;
    const LOAD_IMMEDIATE: u8 = 0x18;
    const IF_EQUAL: u8 = 0x15;
    const IF_NOT_EQUAL: u8 = 0x55;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// Source register that makes an immediate a map's file descriptor.
    const MAP_FD: u8 = 1;
    /// `BPF_FUNC_*`.
    const TAIL_CALL: u32 = 12;
    const SKB_VLAN_PUSH: u32 = 18;
    const SKB_CHANGE_TAIL: u32 = 38;
    const SET_HASH: u32 = 48;
    const ETH_P_8021Q: u32 = 0x8100_u16.to_be() as u32;

    #[expect(
        clippy::cast_possible_truncation,
        reason = "offsets in a struct of 192 bytes"
    )]
    const fn word(index: usize) -> u16 {
        (offset_of!(SkBuff, cb) + index * 4) as u16
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an offset in a struct of 192 bytes"
    )]
    const SKB_HASH: u16 = offset_of!(SkBuff, hash) as u16;

    let map = programs.as_raw_fd().unsigned_abs();
    [
        insn(MOV_REG, 6, 1, 0, 0),
        insn(LOAD, 7, 6, word(cb::STEP), 0),
        insn(LOAD, 8, 6, word(cb::PROGRAMS), 0),
        // Only before the first step: hash, length and tag.
        insn(IF_NOT_EQUAL, 7, 0, 14, 0),
        insn(LOAD, 2, 6, word(cb::HASH), 0),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(CALL, 0, 0, 0, SET_HASH),
        insn(LOAD, 2, 6, word(cb::CUT), 0),
        insn(IF_EQUAL, 2, 0, 3, 0),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(MOV, 3, 0, 0, 0),
        insn(CALL, 0, 0, 0, SKB_CHANGE_TAIL),
        insn(LOAD, 3, 6, word(cb::VLAN), 0),
        insn(IF_EQUAL, 3, 0, 4, 0),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(MOV, 2, 0, 0, ETH_P_8021Q),
        insn(AND, 3, 0, 0, 0xffff),
        insn(CALL, 0, 0, 0, SKB_VLAN_PUSH),
        insn(MOV_REG, 1, 7, 0, 0),
        insn(ADD, 1, 0, 0, 1),
        insn(STORE, 6, 1, word(cb::STEP), 0),
        insn(SHIFT_LEFT, 7, 0, 0, 3),
        insn(SHIFT_RIGHT_REG, 8, 7, 0, 0),
        insn(AND, 8, 0, 0, 0xff),
        insn(IF_EQUAL, 8, 0, 7, REPORT),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(LOAD_IMMEDIATE, 2, MAP_FD, 0, map),
        0,
        insn(MOV_REG, 3, 8, 0, 0),
        insn(CALL, 0, 0, 0, TAIL_CALL),
        insn(MOV, 0, 0, 0, TAIL_CALL_FAILED),
        insn(EXIT, 0, 0, 0, 0),
        insn(LOAD, 1, 6, SKB_HASH, 0),
        insn(STORE, 6, 1, word(cb::HASH), 0),
        insn(MOV, 0, 0, 0, 0),
        insn(EXIT, 0, 0, 0, 0),
    ]
}
