//! The `bpf(2)` commands that aya does not offer in the form needed here: links by interface index
//! with their kernel-side state, and batched map reads.
//!
//! The only file of the agent with raw system calls; the tests add commands of their own to it. Every
//! function passes a zero-initialised attribute struct that spells the part of the kernel's
//! `union bpf_attr` the command reads; the kernel takes the missing tail as zero.
#![expect(unsafe_code, reason = "bpf(2) has no safe binding")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use bytemuck::Pod;

/// `enum bpf_cmd` of `linux/bpf.h`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    ObjPin = 6,
    ObjGet = 7,
    ObjGetInfoByFd = 15,
    ProgQuery = 16,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `enum bpf_link_type`.
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// Where on an interface a program is attached: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// `XDP_FLAGS_SKB_MODE`: the program sees packets after the driver, of any interface.
pub const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`: the driver runs the program.
pub const XDP_NATIVE: u32 = 1 << 2;

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPlace {
    pub program_id: u32,
    /// 0 once the interface is gone or the link was detached.
    pub ifindex: u32,
    /// A [`Place`].
    pub attach_type: u32,
}

/// Pins `object` at `path`, which must not exist.
pub fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: fd_number(object),
        file_flags: 0,
    };
    // SAFETY: `pathname` points to a NUL-terminated string that outlives the call; the command
    // writes nothing to user memory.
    unsafe { bpf(Command::ObjPin as i32, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: as for `object_pin`.
    let fd = unsafe { bpf(Command::ObjGet as i32, &mut attr) }?;
    // SAFETY: BPF_OBJ_GET returns a file descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches `program`; to tcx behind the programs already there. `flags` are for XDP alone.
/// `ENODEV`: no such interface; `EINVAL`: a kernel without tcx; `EBUSY`: another XDP program;
/// `EOPNOTSUPP`: a driver without XDP.
pub fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    place: Place,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: fd_number(program),
        target_ifindex: ifindex,
        attach_type: place as u32,
        flags,
    };
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(Command::LinkCreate as i32, &mut attr) }?;
    // SAFETY: BPF_LINK_CREATE returns a file descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of `link` atomically. `ENOLINK`: the link is defunct.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: fd_number(link),
        new_prog_fd: fd_number(program),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(Command::LinkUpdate as i32, &mut attr) }.map(drop)
}

/// Detaches `link` from its interface. One that is detached already stays so.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr {
        link_fd: fd_number(link),
    };
    // SAFETY: the attributes hold no pointers.
    unsafe { bpf(Command::LinkDetach as i32, &mut attr) }.map(drop)
}

/// State of a link; `None` when `link` is no link of an interface.
pub fn link_place(link: BorrowedFd<'_>) -> io::Result<Option<LinkPlace>> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: fd_number(link),
        info_len: size_of_u32::<LinkInfo>(),
        info: (&raw mut info) as u64,
    };
    // SAFETY: `info` points to `info_len` writable bytes that outlive the call and nothing else
    // refers to; any bytes are a valid `LinkInfo`.
    unsafe { bpf(Command::ObjGetInfoByFd as i32, &mut attr) }?;
    let attach_type = match info.link_type {
        BPF_LINK_TYPE_TCX => info.attach_type,
        BPF_LINK_TYPE_XDP => Place::Xdp as u32,
        _ => return Ok(None),
    };
    Ok(Some(LinkPlace {
        program_id: info.prog_id,
        ifindex: info.ifindex,
        attach_type,
    }))
}

/// Programs at one place of an interface: `BPF_MPROG_MAX`.
const MAX_PROGRAMS: usize = 64;

/// The ids of the tcx programs at a place, in the order in which packets get to them. `ENODEV`: no such interface.
pub fn programs(ifindex: u32, place: Place) -> io::Result<Vec<u32>> {
    let mut ids = [0; MAX_PROGRAMS];
    let mut attr = ProgQueryAttr {
        target_ifindex: ifindex,
        attach_type: place as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        count: size_of_u32::<[u8; MAX_PROGRAMS]>(),
        ..ProgQueryAttr::default()
    };
    // SAFETY: `prog_ids` has room for `count` ids, outlives the call and is referred to nowhere else; of
    // the attributes the kernel writes those that the struct has.
    unsafe { bpf(Command::ProgQuery as i32, &mut attr) }?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}

/// Entries per system call.
const BATCH: usize = 4_096;

/// Every entry of an array, a hash map or, from Linux 5.13 on, a longest-prefix-match trie. Unlike iteration key by
/// key it ends and returns no entry of a hash map twice while the programs insert and evict entries: the kernel walks
/// the table bucket by bucket.
///
/// `K` and `V` must have the key and value size of the map; the caller has checked them.
pub fn map_entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    /// Room for the kernel's position: a bucket number, or a key.
    type Position = [u64; 5];
    const {
        assert!(
            size_of::<K>() <= size_of::<Position>(),
            "a key is the position in arrays"
        );
    };

    let mut entries = Vec::new();
    let mut keys = vec![K::zeroed(); BATCH];
    let mut values = vec![V::zeroed(); BATCH];
    let mut position: Position = [0; 5];
    let mut first = true;
    loop {
        let start = position;
        let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { (&raw const start) as u64 },
            out_batch: (&raw mut position) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map_fd: fd_number(map),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `keys` and `values` have room for `count` elements of the map's sizes, the
        // positions for a key; all outlive the call, none is referred to elsewhere, and `Pod` makes
        // any bytes the kernel writes a value.
        let result = unsafe { bpf(Command::MapLookupBatch as i32, &mut attr) };
        let end = match result {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // One bucket holds more than fits.
                Some(libc::ENOSPC) => {
                    keys.resize(keys.len() * 2, K::zeroed());
                    values.resize(values.len() * 2, V::zeroed());
                    position = start;
                    continue;
                }
                _ => return Err(error),
            },
        };
        let filled = attr.count as usize;
        entries.extend(
            keys.iter()
                .copied()
                .zip(values.iter().copied())
                .take(filled),
        );
        if end {
            return Ok(entries);
        }
        first = false;
    }
}

/// The first `count` entries of an array. Of a per-CPU one, from Linux 5.13 on, the values of all CPUs for each
/// entry: there are `cpus` of them, and one of any other array.
///
/// `V` must have the value size of the map, a multiple of eight; the caller has checked it.
pub fn first_values<V: Pod>(map: BorrowedFd<'_>, count: usize, cpus: usize) -> io::Result<Vec<V>> {
    const {
        assert!(size_of::<V>().is_multiple_of(8), "the kernel pads to words");
    };
    let mut keys = vec![0_u32; count];
    let mut values = vec![V::zeroed(); count.saturating_mul(cpus)];
    let mut position = 0_u32;
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: (&raw mut position) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(count).map_err(io::Error::other)?,
        map_fd: fd_number(map),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `keys` has room for `count` keys, `values` for a value of each of them and of each possible CPU,
    // `position` for a key; all outlive the call, none is referred to elsewhere, and `Pod` makes any bytes the kernel
    // writes a value.
    match unsafe { bpf(Command::MapLookupBatch as i32, &mut attr) } {
        Ok(_) => {}
        // The end of the map.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    values.truncate((attr.count as usize).saturating_mul(cpus));
    Ok(values)
}

/// `BPF_OBJ_PIN`, `BPF_OBJ_GET`.
#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `BPF_PROG_QUERY`, with all that the kernel writes back.
#[derive(Default)]
#[repr(C)]
struct ProgQueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
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

/// Beginning of `struct bpf_link_info`, with the `tcx` member of its union (8-byte aligned).
#[derive(Default)]
#[repr(C)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

/// A command of `enum bpf_cmd`.
///
/// # Safety
/// `attr` must spell the attributes of `command`, and each pointer in it must be valid for what
/// the command reads or writes there.
pub unsafe fn bpf<A>(command: i32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is an exclusive reference to `size_of::<A>()` initialised bytes, the size that
    // is passed; the caller vouches for the pointers inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// File descriptors are never negative.
pub fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

const fn size_of_u32<T>() -> u32 {
    const { assert!(size_of::<T>() <= u32::MAX as usize, "attributes are small") };
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    {
        size_of::<T>() as u32
    }
}
