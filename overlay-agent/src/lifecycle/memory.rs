//! What the C library keeps of memory that was given back.

/// Has all threads share one heap. By default each of up to eight per CPU gets its own and keeps what it once
/// needed: whichever thread the next big job happens to run on then costs its memory again. The agent allocates
/// little at a time, and nothing on the way of packets. To be called before there are threads.
#[expect(unsafe_code, reason = "mallopt(3) has no safe binding")]
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers and sets a parameter of the allocator. Where that is refused, the default
    // stays, which is right as well.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
