//! Instructions of a program that is put together by hand: `struct bpf_insn` and the operations that
//! are needed, as `linux/bpf.h` and `linux/bpf_common.h` encode them. Arithmetic is of 64 bits.

pub const ADD: u8 = 0x07;
pub const AND: u8 = 0x57;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;
pub const IF_EQUAL: u8 = 0x15;
pub const IF_GREATER_REG: u8 = 0x2d;
pub const IF_NOT_EQUAL: u8 = 0x55;
/// Compares the low halves.
pub const IF_NOT_EQUAL_32: u8 = 0x56;
pub const LOAD: u8 = 0x61;
pub const LOAD_BYTE: u8 = 0x71;
pub const LOAD_HALF: u8 = 0x69;
/// Of 64 bits, which the next instruction completes.
pub const LOAD_IMMEDIATE: u8 = 0x18;
pub const MOV: u8 = 0xb7;
pub const MOV_REG: u8 = 0xbf;
pub const SHIFT_LEFT: u8 = 0x67;
pub const SHIFT_RIGHT: u8 = 0x77;
pub const SHIFT_RIGHT_REG: u8 = 0x7f;
pub const STORE: u8 = 0x63;
pub const STORE_BYTE: u8 = 0x73;
pub const STORE_IMMEDIATE: u8 = 0x62;

/// One instruction. Jumps go forward only.
pub const fn insn(code: u8, dst: u8, src: u8, offset: u16, immediate: u32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u64) << 16
        | (immediate as u64) << 32
}

/// An offset in a context or a header.
#[expect(
    clippy::cast_possible_truncation,
    reason = "offsets in a struct of 192 bytes, and in short headers"
)]
pub const fn short(offset: usize) -> u16 {
    offset as u16
}
