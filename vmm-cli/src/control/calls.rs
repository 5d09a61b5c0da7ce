//! What the threads of the control socket ask of the kernel.

use vmm_core::thread::{Call, Kind, calls};
use vmm_devices::virtio::block::calls::{IMAGES, RINGS};
use vmm_devices::virtio::net::calls::TAP;
use vmm_devices::virtio::vhost::calls::VHOST;
use vmm_devices::virtio::vhost_user::calls::BACK_END;

/// An image is locked.
const LOCKS: &[Call] = &[Call::fcntl(libc::F_OFD_SETLK)];

/// Clients come, ask, are answered and go.
const CLIENTS: &[Call] = &[
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_getsockopt),
    Call::any(libc::SYS_geteuid),
    // It takes its socket along.
    Call::any(libc::SYS_statx),
    Call::any(libc::SYS_unlink),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_lseek),
    Call::any(libc::SYS_pread64),
];

/// `control`: the control socket.
pub(crate) static CONTROL: Kind = Kind {
    name: "control",
    tables: &[calls::WAITING, calls::DESCRIPTORS, calls::PUBLISHING, calls::KICKING, calls::LOOKING, CLIENTS],
};

/// `control-wait`: an operation that waits, for vCPUs, for the guest or for the host.
pub(crate) static CONTROL_WAIT: Kind = Kind {
    name: "control-wait",
    tables: &[
        calls::WAITING,
        calls::DESCRIPTORS,
        calls::PUBLISHING,
        calls::KICKING,
        calls::LOOKING,
        calls::ROUTES,
        calls::SLOTS,
        IMAGES,
        LOCKS,
        RINGS,
        TAP,
        VHOST,
        BACK_END,
    ],
};
