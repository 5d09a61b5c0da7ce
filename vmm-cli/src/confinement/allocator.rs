//! The memory allocator, as confined threads need it.
#![expect(unsafe_code, reason = "a setting of the C library")]

/// One arena for all threads: for each further one the C library looks in `/sys` how many processors there are, whichever thread happens to
/// need it. No path on which time matters allocates.
pub(super) fn settle() {
    // SAFETY:
    // - the call takes two numbers and changes a setting of the C library's own.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
