//! What the thread of a balloon asks of the kernel.

use vmm_core::thread::{Call, Kind, calls};

/// `balloon`: waits for the host when memory goes.
pub static BALLOON: Kind = Kind {
    name: "balloon",
    tables: &[calls::WAITING, calls::DESCRIPTORS, calls::PUBLISHING, &[Call::any(libc::SYS_fallocate)]],
};
