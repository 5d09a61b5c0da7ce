//! System calls of the jail for which no crate has a safe function.
#![expect(unsafe_code, reason = "system calls that the crates in use do not have")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::mount::MountAttrFlags;

/// `struct mount_attr` (mount_setattr(2)).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds `flags` to what the mount at `mount` has.
pub(super) fn add_mount_flags(mount: BorrowedFd<'_>, flags: MountAttrFlags) -> io::Result<()> {
    let attr = MountAttr { set: flags.bits().into(), clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY:
    // - the path is a text of no length that ends with NUL, and stands for the descriptor itself;
    // - the kernel only reads the structure, whose size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has this process be told of its children, also where it was started by one that had set that to be ignored.
pub(super) fn hear_of_children() -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY:
    // - the default action installs no handler.
    unsafe { sigaction(Signal::SIGCHLD, &action) }?;
    Ok(())
}
