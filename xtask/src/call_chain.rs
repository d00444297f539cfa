//! How much stack the deepest chain of calls in each program takes, as older kernels count it.
//!
//! The verifier limits the sum over a chain, and kernels differ in how they count: up to Linux 6.7
//! each frame is rounded up to 32 bytes, and one without stack counts as 32; later ones round to 16
//! where the JIT is on. The `stack depth 160+240+80` of a verifier log names the frames of all
//! functions, not who calls whom. So the chains are read off the object: each program is linked as a
//! loader does it, its calls are followed, and a frame is as deep as the lowest place below the
//! frame pointer that its function names.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::{
    Object,
    generated::{
        BPF_ADD, BPF_ALU64, BPF_CALL, BPF_DW, BPF_IMM, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MOV,
        BPF_PSEUDO_CALL, BPF_ST, BPF_STX, BPF_X, bpf_insn,
    },
};

/// `BPF_REG_SIZE` in the kernel.
const SLOT: u64 = 8;
/// `round_up(max_t(u32, stack_depth, 1), 32)` in the kernel's `check_max_stack_depth`.
const ROUNDING: u64 = 32;
/// `MAX_CALL_FRAMES` in the kernel.
const MAX_FRAMES: usize = 8;

const FRAME_POINTER: u8 = 10;
const CALL: u32 = BPF_JMP | BPF_CALL;
const COPY: u32 = BPF_ALU64 | BPF_MOV | BPF_X;
const ADD_CONSTANT: u32 = BPF_ALU64 | BPF_ADD | BPF_K;
const LOAD_TWO_WORDS: u32 = BPF_LD | BPF_IMM | BPF_DW;
/// The bits of an operation that say of which class it is.
const CLASS: u32 = 7;

/// The stack of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Bytes of the deepest chain, from the program down, as older kernels count each frame.
    pub chain: Vec<u64>,
    /// Bytes of every function of the program, as they are.
    pub frames: Vec<u64>,
}

impl Stack {
    pub fn deepest(&self) -> u64 {
        self.chain.iter().sum()
    }
}

/// The stack of every program in the object, by name.
pub fn read(object: &Path) -> Result<BTreeMap<String, Stack>> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut object = Object::parse(&bytes).context("not a BPF object")?;
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|&(section, _)| section)
        .collect();
    object
        .relocate_calls(&sections)
        .context("cannot link its functions")?;
    let mut stacks = BTreeMap::new();
    for (name, program) in &object.programs {
        let linked = object
            .functions
            .get(&program.function_key())
            .with_context(|| format!("{name} has no instructions"))?;
        let stack = measure(&linked.instructions).with_context(|| format!("calls of {name}"))?;
        stacks.insert(name.clone(), stack);
    }
    Ok(stacks)
}

/// One function of a linked program.
#[derive(Debug, Default)]
struct Function {
    frame: u64,
    /// Where the functions it calls begin.
    calls: BTreeSet<usize>,
}

fn measure(program: &[bpf_insn]) -> Result<Stack> {
    let functions = functions(program)?;
    Ok(Stack {
        chain: deepest_chain(&functions, 0, 1)?,
        frames: functions.values().map(|function| function.frame).collect(),
    })
}

/// Splits a linked program where its calls lead to, by the index of the first instruction.
fn functions(program: &[bpf_insn]) -> Result<BTreeMap<usize, Function>> {
    let calls: Vec<(usize, usize)> = instructions(program)
        .filter(|&(_, instruction)| is_call(instruction))
        .map(|(at, instruction)| {
            let target = i64::try_from(at)? + 1 + i64::from(instruction.imm);
            let target = usize::try_from(target)?;
            ensure!(target < program.len(), "instruction {at} calls nowhere");
            Ok((at, target))
        })
        .collect::<Result<_>>()?;
    let mut functions = BTreeMap::from([(0, Function::default())]);
    for &(_, target) in &calls {
        functions.entry(target).or_default();
    }
    for (at, target) in calls {
        if let Some((_, caller)) = functions.range_mut(..=at).next_back() {
            caller.calls.insert(target);
        }
    }
    let starts: Vec<usize> = functions.keys().copied().collect();
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(program.len());
        if let Some(function) = functions.get_mut(start) {
            function.frame = frame(&program[*start..end]);
        }
    }
    Ok(functions)
}

/// Every instruction with its index; the second half of a two-word load is none.
fn instructions(program: &[bpf_insn]) -> impl Iterator<Item = (usize, bpf_insn)> {
    let mut is_second_half = false;
    let all = program.iter().copied().enumerate();
    all.filter(move |(_, instruction)| {
        let is_instruction = !is_second_half;
        is_second_half = is_instruction && operation(*instruction) == LOAD_TWO_WORDS;
        is_instruction
    })
}

fn operation(instruction: bpf_insn) -> u32 {
    instruction.code.into()
}

fn is_call(instruction: bpf_insn) -> bool {
    operation(instruction) == CALL && u32::from(instruction.src_reg()) == BPF_PSEUDO_CALL
}

/// How far below the frame pointer a function reaches. The compiler makes an address on the stack by
/// copying the frame pointer and adding to the copy in the next instruction. The verifier counts whole slots.
fn frame(function: &[bpf_insn]) -> u64 {
    let mut depth = 0;
    let mut copy = None;
    for (_, instruction) in instructions(function) {
        let offset = match operation(instruction) & CLASS {
            BPF_LDX if instruction.src_reg() == FRAME_POINTER => i32::from(instruction.off),
            BPF_ST | BPF_STX if instruction.dst_reg() == FRAME_POINTER => {
                i32::from(instruction.off)
            }
            _ if operation(instruction) == ADD_CONSTANT && copy == Some(instruction.dst_reg()) => {
                instruction.imm
            }
            _ => 0,
        };
        depth = depth.max(u64::from(offset.min(0).unsigned_abs()));
        let copies = operation(instruction) == COPY && instruction.src_reg() == FRAME_POINTER;
        copy = copies.then(|| instruction.dst_reg());
    }
    depth.next_multiple_of(SLOT)
}

/// The frames of the deepest chain that begins with the function at `start`.
fn deepest_chain(
    functions: &BTreeMap<usize, Function>,
    start: usize,
    level: usize,
) -> Result<Vec<u64>> {
    if level > MAX_FRAMES {
        bail!("more than {MAX_FRAMES} functions deep");
    }
    let function = &functions[&start];
    let mut below = Vec::new();
    for &callee in &function.calls {
        let chain = deepest_chain(functions, callee, level + 1)?;
        if chain.iter().sum::<u64>() > below.iter().sum() {
            below = chain;
        }
    }
    let mut chain = vec![function.frame.max(1).next_multiple_of(ROUNDING)];
    chain.extend(below);
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: u32 = 0x95;
    const STORE_DWORD: u32 = 0x7b;
    const LOAD_DWORD: u32 = 0x79;

    fn instruction(code: u32, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
        bpf_insn {
            code: code.try_into().expect("one byte"),
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(dst, src),
            off,
            imm,
        }
    }

    fn exit() -> bpf_insn {
        instruction(EXIT, 0, 0, 0, 0)
    }

    fn store(off: i16) -> bpf_insn {
        instruction(STORE_DWORD, FRAME_POINTER, 1, off, 0)
    }

    fn call(distance: i32) -> bpf_insn {
        instruction(CALL, 0, 1, 0, distance)
    }

    #[test]
    fn a_frame_is_as_deep_as_its_lowest_access() {
        assert_eq!(frame(&[store(-8), store(-40), store(-16), exit()]), 40);
        let load = instruction(LOAD_DWORD, 1, FRAME_POINTER, -72, 0);
        assert_eq!(frame(&[load, exit()]), 72);
        assert_eq!(frame(&[exit()]), 0);
    }

    #[test]
    fn an_address_that_is_handed_on_counts() {
        let copy = instruction(COPY, 2, FRAME_POINTER, 0, 0);
        let add = instruction(ADD_CONSTANT, 2, 0, 0, -104);
        assert_eq!(frame(&[copy, add, exit()]), 104);
        // Constants added to something else do not.
        let other = instruction(ADD_CONSTANT, 3, 0, 0, -4096);
        assert_eq!(frame(&[copy, add, other, exit()]), 104);
    }

    #[test]
    fn the_second_half_of_a_constant_is_no_instruction() {
        let constant = [
            instruction(LOAD_TWO_WORDS, 1, 0, 0, 0),
            instruction(0, 0, 0, 0, 0),
        ];
        let program = [constant[0], constant[1], call(0), exit()];
        assert_eq!(instructions(&program).count(), 3);
        assert_eq!(measure(&program).expect("it links").frames, [0, 0]);
    }

    #[test]
    fn the_deepest_chain_counts_not_the_sum_of_all_functions() {
        let program = [
            store(-160), // 0: calls 4 and 7
            call(2),
            call(4),
            exit(),
            store(-240), // 4: calls 9
            call(3),
            exit(),
            store(-264), // 7: calls nothing
            exit(),
            store(-80), // 9
            exit(),
        ];
        let stack = measure(&program).expect("it links");
        assert_eq!(stack.frames, [160, 240, 264, 80]);
        assert_eq!(stack.chain, [160, 256, 96]);
        assert_eq!(stack.deepest(), 512);
    }

    #[test]
    fn a_frame_without_stack_counts_as_one_unit() {
        let program = [call(1), exit(), exit()];
        assert_eq!(measure(&program).expect("it links").chain, [32, 32]);
    }

    #[test]
    fn calls_that_never_end_and_calls_to_nowhere_are_errors() {
        assert!(measure(&[call(-1), exit()]).is_err());
        assert!(measure(&[call(7), exit()]).is_err());
        assert!(measure(&[call(-2), exit()]).is_err());
    }
}
