//! What of the memory is kept without need: free pieces that the C library holds back, and pages of the
//! program that only its start has used.
#![expect(
    unsafe_code,
    reason = "mallopt(3), malloc_trim(3), dl_iterate_phdr(3) and madvise(2) have no safe binding"
)]

use std::{
    ffi::{c_int, c_void},
    slice,
};

/// The page size of every architecture the agent runs on divides this.
const LARGEST_PAGE: usize = 64 << 10;

/// Larger pieces come from the kernel and go back to it. By default the bound grows with each of them that is
/// given back, to 32 MiB: from then on they leave holes in the heap.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Has all threads share one heap. By default each of up to eight per CPU gets its own and keeps what it once
/// needed: whichever thread the next big job happens to run on then costs its memory again. The agent allocates
/// little at a time, and nothing on the way of packets. To be called before there are threads.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers and sets a parameter of the allocator. Where that is refused, the default
    // stays, which is right as well.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives back what is free between what is used, which the C library keeps, and what of the program is not in use.
/// Worth its time after a big job, or before one.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and tells the kernel of pages that no allocation is in.
    unsafe {
        libc::malloc_trim(0);
    }
    unmap_code();
}

/// Unmaps the code and the constants of the program and of its libraries. What is needed again its next use maps,
/// from the page cache; the rest counts as the agent's no more, and is the first to go where memory is short.
fn unmap_code() {
    // SAFETY: the function keeps to what `dl_iterate_phdr` asks of it, and gets no data.
    unsafe {
        libc::dl_iterate_phdr(Some(unmap_object), std::ptr::null_mut());
    }
}

/// Unmaps what of one object nobody can have written.
unsafe extern "C" fn unmap_object(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes an object, and its program headers stay while it does.
    let (base, headers) = unsafe {
        let object = &*object;
        let headers = slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
        (object.dlpi_addr, headers)
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let (Ok(begin), Ok(length)) = (
            usize::try_from(base + header.p_vaddr),
            usize::try_from(header.p_memsz),
        ) else {
            continue;
        };
        let end = (begin + length) & !(LARGEST_PAGE - 1);
        let begin = begin.next_multiple_of(LARGEST_PAGE);
        let Some(length) = end.checked_sub(begin) else {
            continue;
        };
        // SAFETY: the pages are within a segment that is mapped from a file and that nothing writes, for what is
        // relocated is in others: the next access finds the same bytes. Only breakpoints that a debugger has set
        // are gone.
        unsafe {
            libc::madvise(begin as *mut c_void, length, libc::MADV_DONTNEED);
        }
    }
    0
}
