//! The ioctl that gives a ring of vhost-net its TAP (`linux/vhost.h`): the vhost crate has it only for a device that it opens itself.
#![expect(unsafe_code, reason = "a system call")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `struct vhost_vring_file`.
#[repr(C)]
struct RingFile {
    index: u32,
    fd: i32,
}

/// `VHOST_NET_SET_BACKEND`: `_IOW(0xaf, 0x30, struct vhost_vring_file)`.
const SET_BACKEND: libc::Ioctl = 0x4008_af30;

/// Gives the ring `index` of `vhost` the queue `tap`, or takes it away.
pub(super) fn set_backend(vhost: impl AsFd, index: usize, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let index = u32::try_from(index).map_err(io::Error::other)?;
    let file = RingFile { index, fd: tap.map_or(-1, |tap| tap.as_raw_fd()) };
    let file: *const RingFile = &raw const file;
    // SAFETY:
    // - the kernel reads one `struct vhost_vring_file`, whose layout `RingFile` has, and writes nothing;
    // - a descriptor that is no vhost-net refuses it.
    let status = unsafe { libc::ioctl(vhost.as_fd().as_raw_fd(), SET_BACKEND, file) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
