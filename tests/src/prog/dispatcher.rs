//! A hand-assembled program that gives a test run what its context cannot: a hash, a `tc_index` and a
//! VLAN tag on the packet, a packet cut short, and several programs in a row on one packet, as it meets
//! them on its way through a host, with the host's own hop between them.
//!
//! A test run with `repeat` does not reset the packet between the runs. Each run of the dispatcher
//! reads from `cb` which step is due and tail-calls the program of that step, or takes the hop, or at
//! last reports what is left on the packet.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::packet::ETH_LEN;
use crate::sys::{
    bpf::{self, SkBuff},
    insn::{self, insn},
};

/// Steps that fit the word of `cb` that holds them.
const STEPS: usize = 4;

/// The step in which the kernel routes the packet: its TTL or hop limit is one less.
pub const HOP: u32 = 0xfe;

/// The step that copies the packet's hash and `tc_index` to `cb`.
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
    /// Length to cut the packet to, or 0, and `tc_index` in the high half; `tc_index` alone in the
    /// report.
    pub const CUT_AND_INDEX: usize = 4;
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a> {
    /// The packet's hash before the first program.
    pub hash: u32,
    /// Its `tc_index` then.
    pub tc_index: u16,
    /// Tag control information of a VLAN tag outside the packet's bytes.
    pub vlan: Option<u16>,
    /// Length the packet is cut to: a test run takes no IP packet without a whole IP header.
    pub cut: Option<u16>,
    /// Indexes of the programs to run one after the other, or [`HOP`].
    pub steps: &'a [u32],
    /// Whether to end with a report instead of the last program's verdict.
    pub report: bool,
}

/// What is on a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub hash: u32,
    pub tc_index: u32,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    Verdict(u32),
    Left(Left),
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
        let array = bpf::program_array_create(count)?;
        for (index, &program) in (0..).zip(programs) {
            bpf::program_array_set(array.as_fd(), index, program)?;
        }
        Ok(Self {
            program: bpf::classifier_load(&instructions(array.as_fd()))?,
            _programs: array,
        })
    }

    pub fn run(
        &self,
        script: Script<'_>,
        frame: &mut Vec<u8>,
        context: &mut SkBuff,
    ) -> io::Result<Ending> {
        let steps: Vec<u32> = script
            .steps
            .iter()
            .copied()
            .chain(script.report.then_some(REPORT))
            .collect();
        if steps.len() > STEPS {
            return Err(io::Error::other(format!(
                "more than {STEPS} steps: {steps:?}"
            )));
        }
        let cut = u32::from(script.cut.unwrap_or(0));
        context.cb[cb::HASH] = script.hash;
        context.cb[cb::VLAN] = script.vlan.map_or(0, |tci| 1 << 16 | u32::from(tci));
        context.cb[cb::CUT_AND_INDEX] = cut | u32::from(script.tc_index) << 16;
        context.cb[cb::PROGRAMS] = steps.iter().rev().fold(0, |all, step| all << 8 | step);
        let repeat = u32::try_from(steps.len()).map_err(io::Error::other)?;
        let verdict = bpf::test_run(self.program.as_fd(), frame, context, repeat, 0)?;
        Ok(if script.report {
            Ending::Left(Left {
                hash: context.cb[cb::HASH],
                tc_index: context.cb[cb::CUT_AND_INDEX],
            })
        } else {
            Ending::Verdict(verdict)
        })
    }
}

/// The program. Registers: 6 context, 7 step and then the packet's protocol, 8 all programs, then the
/// step's, then where the TTL is, 9 the TTL.
fn instructions(programs: BorrowedFd<'_>) -> [u64; 74] {
    use std::{mem::offset_of, os::fd::AsRawFd as _};

    use insn::{
        ADD, AND, CALL, EXIT, IF_EQUAL, IF_NOT_EQUAL, LOAD, LOAD_BYTE, LOAD_IMMEDIATE, MOV,
        MOV_REG, SHIFT_LEFT, SHIFT_RIGHT, SHIFT_RIGHT_REG, STORE, STORE_BYTE, short,
    };

    /// Source register that makes an immediate a map's file descriptor.
    const MAP_FD: u8 = 1;
    /// The register that points behind the stack, and the stack's last word from there.
    const STACK: u8 = 10;
    const LAST_WORD: i16 = -8;
    /// `BPF_FUNC_*`.
    const SKB_STORE_BYTES: u32 = 9;
    const L3_CSUM_REPLACE: u32 = 10;
    const TAIL_CALL: u32 = 12;
    const SKB_VLAN_PUSH: u32 = 18;
    const SKB_LOAD_BYTES: u32 = 26;
    const SKB_CHANGE_TAIL: u32 = 38;
    const SET_HASH: u32 = 48;
    const ETH_P_8021Q: u32 = 0x8100_u16.to_be() as u32;
    const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
    const MINUS_1: u32 = u32::MAX;

    const fn word(index: usize) -> u16 {
        short(offset_of!(SkBuff, cb) + index * 4)
    }
    const SKB_HASH: u16 = short(offset_of!(SkBuff, hash));
    const TC_INDEX: u16 = short(offset_of!(SkBuff, tc_index));
    const PROTOCOL: u16 = short(offset_of!(SkBuff, protocol));
    const IPV4_TTL: u32 = short(ETH_LEN + 8) as u32;
    const IPV4_CHECKSUM: u32 = short(ETH_LEN + 10) as u32;
    const HOP_LIMIT: u32 = short(ETH_LEN + 7) as u32;
    const ON_STACK: u16 = LAST_WORD.cast_unsigned();
    const TO_STACK: u32 = (LAST_WORD as i32).cast_unsigned();

    let map = programs.as_raw_fd().unsigned_abs();
    [
        insn(MOV_REG, 6, 1, 0, 0),
        insn(LOAD, 7, 6, word(cb::STEP), 0),
        insn(LOAD, 8, 6, word(cb::PROGRAMS), 0),
        // Only before the first step: hash, index, length and tag.
        insn(IF_NOT_EQUAL, 7, 0, 18, 0),
        insn(LOAD, 2, 6, word(cb::HASH), 0),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(CALL, 0, 0, 0, SET_HASH),
        insn(LOAD, 2, 6, word(cb::CUT_AND_INDEX), 0),
        insn(MOV_REG, 3, 2, 0, 0),
        insn(SHIFT_RIGHT, 3, 0, 0, 16),
        insn(STORE, 6, 3, TC_INDEX, 0),
        insn(AND, 2, 0, 0, 0xffff),
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
        insn(IF_EQUAL, 8, 0, 8, REPORT),
        insn(IF_EQUAL, 8, 0, 13, HOP),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(LOAD_IMMEDIATE, 2, MAP_FD, 0, map),
        0,
        insn(MOV_REG, 3, 8, 0, 0),
        insn(CALL, 0, 0, 0, TAIL_CALL),
        insn(MOV, 0, 0, 0, TAIL_CALL_FAILED),
        insn(EXIT, 0, 0, 0, 0),
        // The report.
        insn(LOAD, 1, 6, SKB_HASH, 0),
        insn(STORE, 6, 1, word(cb::HASH), 0),
        insn(LOAD, 1, 6, TC_INDEX, 0),
        insn(STORE, 6, 1, word(cb::CUT_AND_INDEX), 0),
        insn(MOV, 0, 0, 0, 0),
        insn(EXIT, 0, 0, 0, 0),
        // The hop.
        insn(LOAD, 7, 6, PROTOCOL, 0),
        insn(MOV, 8, 0, 0, IPV4_TTL),
        insn(IF_EQUAL, 7, 0, 1, ETH_P_IP),
        insn(MOV, 8, 0, 0, HOP_LIMIT),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(MOV_REG, 2, 8, 0, 0),
        insn(MOV_REG, 3, STACK, 0, 0),
        insn(ADD, 3, 0, 0, TO_STACK),
        insn(MOV, 4, 0, 0, 1),
        insn(CALL, 0, 0, 0, SKB_LOAD_BYTES),
        insn(LOAD_BYTE, 9, STACK, ON_STACK, 0),
        insn(MOV_REG, 1, 9, 0, 0),
        insn(ADD, 1, 0, 0, MINUS_1),
        insn(STORE_BYTE, STACK, 1, ON_STACK, 0),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(MOV_REG, 2, 8, 0, 0),
        insn(MOV_REG, 3, STACK, 0, 0),
        insn(ADD, 3, 0, 0, TO_STACK),
        insn(MOV, 4, 0, 0, 1),
        insn(MOV, 5, 0, 0, 0),
        insn(CALL, 0, 0, 0, SKB_STORE_BYTES),
        insn(IF_NOT_EQUAL, 7, 0, 7, ETH_P_IP),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(MOV, 2, 0, 0, IPV4_CHECKSUM),
        insn(MOV_REG, 3, 9, 0, 0),
        insn(MOV_REG, 4, 9, 0, 0),
        insn(ADD, 4, 0, 0, MINUS_1),
        insn(MOV, 5, 0, 0, 2),
        insn(CALL, 0, 0, 0, L3_CSUM_REPLACE),
        insn(MOV, 0, 0, 0, 0),
        insn(EXIT, 0, 0, 0, 0),
    ]
}
