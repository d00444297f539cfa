//! What the C library keeps of memory that was given back.
#![expect(
    unsafe_code,
    reason = "mallopt(3) and malloc_trim(3) have no safe binding"
)]

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

/// Gives back what is free between what is used, which the C library keeps. Worth its time after a big job.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and tells the kernel of pages that no allocation is in.
    unsafe {
        libc::malloc_trim(0);
    }
}
