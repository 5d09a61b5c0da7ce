//! What the thread of a socket device asks of the kernel.

use vmm_core::thread::{Call, Kind, calls};

use crate::calls::CONNECTING;
use crate::virtio::vhost::calls::VHOST;

/// Clients of the host come.
const STREAMS: &[Call] = &[
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_shutdown),
];

/// `vsock`: a socket device.
pub static VSOCK: Kind = Kind {
    name: "vsock",
    tables: &[
        calls::WAITING,
        calls::DESCRIPTORS,
        calls::PUBLISHING,
        calls::ROUTES,
        CONNECTING,
        STREAMS,
        VHOST,
    ],
};
