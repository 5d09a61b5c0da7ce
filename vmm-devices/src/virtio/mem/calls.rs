//! What the thread of a memory device asks of the kernel.

use vmm_core::thread::{Kind, calls};

use crate::virtio::vhost::calls::VHOST;
use crate::virtio::vhost_user::calls::BACK_END;

/// `virtio-mem`: a memory device. Whoever has a map of guest RAM of its own is told.
pub static VIRTIO_MEM: Kind = Kind {
    name: "virtio-mem",
    tables: &[
        calls::WAITING,
        calls::DESCRIPTORS,
        calls::PUBLISHING,
        calls::KICKING,
        calls::SLOTS,
        VHOST,
        BACK_END,
    ],
};
