//! System calls for which no crate has a safe function.
#![expect(unsafe_code, reason = "Landlock's restriction of one thread, by rules that several threads have")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `landlock_restrict_self` of the calling thread, which has `no_new_privs`.
pub(super) fn restrict_self(rules: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY:
    // - the call takes a descriptor and a number, and touches no memory.
    let status = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
