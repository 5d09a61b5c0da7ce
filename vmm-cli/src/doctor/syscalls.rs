//! System calls that are tried to see whether the kernel lets this process have them.
#![expect(unsafe_code, reason = "system calls that neither std nor nix has")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The descriptor that a system call returned, to be closed.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(checked(result)?).map_err(io::Error::other)?;
    // SAFETY:
    // - a system call that makes descriptors returned it just now: it is open, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a ring of one entry (`io_uring_setup(2)`), one that can be restricted as those of disks are, and closes it.
pub(super) fn try_io_uring() -> io::Result<()> {
    const R_DISABLED: u64 = 1 << 6; // IORING_SETUP_R_DISABLED
    // `struct io_uring_params`: ten words, the third one flags, then two descriptions of rings with 40 bytes each.
    let mut params = [0_u64; 15];
    params[1] = R_DISABLED;
    // SAFETY:
    // - the kernel reads and writes the 120 bytes of the structure, which `params` has, and keeps no reference to it.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    descriptor(result).map(drop)
}

/// Asks for no page to be made ahead of its use (`madvise(2)`): the kernel looks at the advice first.
pub(super) fn try_prefault() -> io::Result<()> {
    // SAFETY:
    // - the range is empty: nothing is touched.
    let result = unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_POPULATE_WRITE) };
    checked(result.into()).map(drop)
}

/// Makes a userfaultfd that serves faults of the kernel too, as those of `KVM_RUN` are, and closes it.
pub(super) fn try_userfaultfd() -> io::Result<()> {
    // SAFETY:
    // - the call has one argument, a word of flags; it only makes a descriptor.
    let result = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    descriptor(result).map(drop)
}

/// The version of Landlock that the kernel has (`landlock_create_ruleset(2)`).
pub(super) fn landlock_abi() -> io::Result<i64> {
    const VERSION: u32 = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY:
    // - with this flag, a null attribute and size 0 the call only returns a number.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    checked(result)
}
