//! What the threads of disks ask of the kernel.

use vmm_core::thread::{Call, Kind, calls};

/// A ring of io_uring is used, and lets go of its image when it ends. It was made aside, for what a disk does and nothing else: whoever
/// makes a ring himself has every call that io_uring has.
pub const RINGS: &[Call] = &[
    Call::any(libc::SYS_io_uring_enter),
    Call::any(libc::SYS_io_uring_register).is(1, UNREGISTER_FILES as libc::c_int),
];

/// `IORING_UNREGISTER_FILES` (`linux/io_uring.h`).
pub(super) const UNREGISTER_FILES: u8 = 3;

/// Images are read and written, grow, shrink and are made sparse.
pub const IMAGES: &[Call] = &[
    Call::any(libc::SYS_pread64),
    Call::any(libc::SYS_preadv),
    Call::any(libc::SYS_pwritev),
    Call::any(libc::SYS_pwritev2),
    Call::any(libc::SYS_fdatasync),
    Call::any(libc::SYS_fallocate),
    Call::any(libc::SYS_ftruncate),
    Call::any(libc::SYS_lseek),
    Call::any(libc::SYS_statx),
];

/// `disk`: the queues of one disk.
pub static DISK: Kind =
    Kind { name: "disk", tables: &[calls::WAITING, calls::DESCRIPTORS, calls::PUBLISHING, RINGS, IMAGES] };

/// `disk-io`: requests that wait, one after the other.
pub static DISK_IO: Kind = Kind { name: "disk-io", tables: &[IMAGES] };
