//! The `bpf(2)` commands that aya does not offer in the form needed here: test runs of any program,
//! a batched read of the counters, and the few calls that load programs put together by hand.
//!
//! Every function passes a zero-initialised attribute struct that spells the part of the kernel's
//! `union bpf_attr` the command reads; the kernel takes the missing tail as zero.

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd as _, OwnedFd},
};

use bytemuck::{Pod, Zeroable};
use overlay_agent::datapath::sys::{bpf, fd_number};

/// `enum bpf_cmd` of `linux/bpf.h`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapUpdateElem = 2,
    ProgLoad = 5,
    ProgTestRun = 10,
    MapLookupBatch = 24,
}

/// `enum bpf_map_type`.
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;

/// `enum bpf_prog_type`.
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `struct __sk_buff`. What a test run may set, says `convert___skb_to_skb` of the kernel's
/// `net/bpf/test_run.c`: of the fields below mark, priority, both interface indexes, `cb`, `tstamp`,
/// `wire_len`, `gso_segs`, `gso_size` and `hwtstamp`; the others must be zero.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SkBuff {
    pub len: u32,
    pub pkt_type: u32,
    pub mark: u32,
    pub queue_mapping: u32,
    pub protocol: u32,
    pub vlan_present: u32,
    pub vlan_tci: u32,
    pub vlan_proto: u32,
    pub priority: u32,
    pub ingress_ifindex: u32,
    pub ifindex: u32,
    pub tc_index: u32,
    pub cb: [u32; 5],
    pub hash: u32,
    pub tc_classid: u32,
    pub data: u32,
    pub data_end: u32,
    pub napi_id: u32,
    pub socket: [u32; 13],
    pub data_meta: u32,
    pub flow_keys: u64,
    pub tstamp: u64,
    pub wire_len: u32,
    pub gso_segs: u32,
    pub sk: u64,
    pub gso_size: u32,
    pub tstamp_type: u32,
    pub hwtstamp: u64,
}

const _: () = assert!(
    size_of::<SkBuff>() == 192,
    "struct __sk_buff of Linux 5.15 and later"
);

/// The packet has a checksum over all of it, as if its device had computed one
/// (`CHECKSUM_COMPLETE`), and the run fails with `EBADMSG` if it is wrong afterwards. Linux 6.11, and
/// updates of older ones.
pub const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// Runs `program` `repeat` times on one packet, which keeps the changes of each run for the next.
/// Returns the last return value; `frame` and `context` become what the program left.
pub fn test_run(
    program: BorrowedFd<'_>,
    frame: &mut Vec<u8>,
    context: &mut SkBuff,
    repeat: u32,
    flags: u32,
) -> io::Result<u32> {
    /// More than a test run can hold: one page.
    const ROOM: usize = 8192;

    let input = std::mem::replace(frame, vec![0; ROOM]);
    let before = *context;
    let mut attr = TestRunAttr {
        prog_fd: fd_number(program),
        retval: 0,
        data_size_in: number(input.len())?,
        data_size_out: number(frame.len())?,
        data_in: input.as_ptr() as u64,
        data_out: frame.as_mut_ptr() as u64,
        repeat,
        duration: 0,
        ctx_size_in: number(size_of::<SkBuff>())?,
        ctx_size_out: number(size_of::<SkBuff>())?,
        ctx_in: (&raw const before) as u64,
        ctx_out: (&raw mut *context) as u64,
        flags,
        cpu: 0,
        batch_size: 0,
        padding: 0,
    };
    // SAFETY: each pointer is to as many bytes as the size next to it says, all outlive the call,
    // and nothing else refers to the two that are written; any bytes are an `SkBuff`.
    unsafe { bpf(Command::ProgTestRun as i32, &mut attr) }?;
    frame.truncate(attr.data_size_out as usize);
    Ok(attr.retval)
}

/// Up to `count` entries of an array or hash map, with `per_key` values for each key: one, or one
/// for each possible CPU. The keys, and the values of the first key, the second, and so on.
pub fn entries<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    count: usize,
    per_key: usize,
) -> io::Result<(Vec<K>, Vec<V>)> {
    const {
        assert!(
            size_of::<V>().is_multiple_of(4),
            "the kernel rounds values up, per CPU to words of 8 bytes"
        );
    };
    let mut keys = vec![K::zeroed(); count];
    let mut values = vec![V::zeroed(); count * per_key];
    let mut position = [0u64; 4];
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: (&raw mut position) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: number(count)?,
        map_fd: fd_number(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `keys` has room for `count` keys, `values` for `per_key` values of each, `position`
    // for a key or bucket number; all outlive the call, none is referred to elsewhere, and `Pod`
    // makes any bytes the kernel writes a value.
    match unsafe { bpf(Command::MapLookupBatch as i32, &mut attr) } {
        Ok(_) => {}
        // The end of the map was reached.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    keys.truncate(attr.count as usize);
    values.truncate(attr.count as usize * per_key);
    Ok((keys, values))
}

/// An array of programs to tail-call.
pub fn program_array_create(max_entries: u32) -> io::Result<OwnedFd> {
    let mut attr = MapCreateAttr {
        map_type: BPF_MAP_TYPE_PROG_ARRAY,
        key_size: number(size_of::<u32>())?,
        value_size: number(size_of::<u32>())?,
        max_entries,
    };
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(Command::MapCreate as i32, &mut attr) }?;
    // SAFETY: BPF_MAP_CREATE returns a file descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `program` at `index` of a program array.
pub fn program_array_set(
    map: BorrowedFd<'_>,
    index: u32,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let value = fd_number(program);
    let mut attr = ElemAttr {
        map_fd: fd_number(map),
        padding: 0,
        key: (&raw const index) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: key and value of a program array are one u32 each, which is what the pointers are to;
    // both outlive the call.
    unsafe { bpf(Command::MapUpdateElem as i32, &mut attr) }.map(drop)
}

/// Loads `instructions` as a TC program under the GPL.
pub fn classifier_load(instructions: &[u64]) -> io::Result<OwnedFd> {
    const LOG: usize = 1 << 16;

    let license = c"GPL";
    let mut log = vec![0u8; LOG];
    let mut attr = ProgLoadAttr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: number(instructions.len())?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: number(log.len())?,
        log_buf: log.as_mut_ptr() as u64,
    };
    // SAFETY: `insns` is to `insn_cnt` instructions of 8 bytes, `license` is NUL-terminated,
    // `log_buf` has `log_size` writable bytes that nothing else refers to; all outlive the call.
    let result = unsafe { bpf(Command::ProgLoad as i32, &mut attr) };
    let fd = result.map_err(|error| {
        let text = String::from_utf8_lossy(&log);
        io::Error::other(format!("{error}: {}", text.trim_end_matches('\0')))
    })?;
    // SAFETY: BPF_PROG_LOAD returns a file descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn number(size: usize) -> io::Result<u32> {
    u32::try_from(size).map_err(io::Error::other)
}
