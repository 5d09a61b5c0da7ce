//! What the threads of the control socket ask of the kernel.

use vmm_core::thread::{Call, Kind, calls, requests};
use vmm_devices::calls::CONNECTING;
use vmm_devices::virtio::block::calls::{IMAGES, RINGS};
use vmm_devices::virtio::net::calls::TAP;
use vmm_devices::virtio::vhost::calls::{VHOST, VHOST_SETUP};
use vmm_devices::virtio::vhost_user::calls::BACK_END;

/// What a client hands over is looked at: an image, which is locked, or an interface and its sockets.
const HANDED: &[Call] = &[
    Call::fcntl(libc::F_OFD_SETLK),
    Call::any(libc::SYS_fstatfs),
    Call::ioctl(requests::known(libc::BLKSSZGET as libc::c_ulong)).elsewhere("a block device that is added"),
    Call::ioctl(requests::known(libc::BLKPBSZGET as libc::c_ulong)).elsewhere("a block device that is added"),
    Call::any(libc::SYS_pwrite64).elsewhere("a qcow2 image that is added and goes past the page cache"),
    Call::ioctl(requests::known(libc::TUNGETIFF)),
    Call::ioctl(requests::known(libc::SIOCGIFHWADDR)),
    Call::ioctl(requests::known(libc::SIOCGIFMTU)),
];

/// Clients come, ask, are answered and go.
const CLIENTS: &[Call] = &[
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_getsockopt),
    Call::any(libc::SYS_geteuid),
    // It takes its socket along.
    Call::any(libc::SYS_statx),
    Call::any(libc::SYS_unlink),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendto),
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
        HANDED,
        RINGS,
        TAP,
        VHOST,
        VHOST_SETUP,
        CONNECTING,
        BACK_END,
    ],
};
