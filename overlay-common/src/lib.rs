//! Types shared by the BPF programs (`overlay-ebpf`) and the agent (`overlay-agent`).
//!
//! Everything here is `no_std`, allocation-free and without I/O. The map types are the ABI between
//! the kernel side and user space:
//!
//! * every multi-byte *protocol* value (address, port, VNI) is an array of bytes in network order,
//!   inside a struct with named fields, so that `bpftool map dump` is readable;
//! * integers appear only for host-order quantities: interface indexes, flags, times, counters;
//! * no type has implicit padding: the `bytemuck` derives refuse it, [`layout`] states every size.
//!
//! A change of any map type needs a new [`ABI_VERSION`]: it is part of the pin directory.
#![no_std]
#![deny(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "fields are packed into words and taken out of them: dropping the other bits is the point"
)]
#![expect(
    clippy::inline_always,
    reason = "a BPF program is one function: a call costs stack the verifier counts, and nanoseconds"
)]

pub mod addr;
pub mod checksum;
pub mod config;
pub mod ecn;
pub mod encap;
pub mod encap6;
pub mod family;
pub mod flow;
pub mod layout;
pub mod maps;
pub mod node;
pub mod outcome;
pub mod pair;
pub mod pod;
pub mod record;
pub mod route;
pub mod short;
pub mod slow;
mod spread;
pub mod stamp;
pub mod wire;

/// Version of the map layouts. Pins live below `<pin-dir>/v<ABI_VERSION>/`.
pub const ABI_VERSION: u32 = 3;
