//! What accesses of a guest to its devices ask of the kernel, whoever makes them; and the threads that belong to no device.

use vmm_core::thread::{Call, Kind, calls};

use crate::virtio::block::calls::{IMAGES, RINGS};
use crate::virtio::net::calls::TAP;
use crate::virtio::vhost::calls::VHOST;
use crate::virtio::vhost_user::calls::BACK_END;

/// Ports that give one thing at a time.
const PLAIN: &[Call] = &[Call::any(libc::SYS_read)];

/// Somebody else connects for the thread, and hands over the socket ([`Connector`](crate::Connector)).
pub const CONNECTING: &[Call] =
    &[Call::any(libc::SYS_sendmsg), Call::any(libc::SYS_recvmsg), Call::any(libc::SYS_poll)];

/// `virtio`: the queues of devices that never wait.
pub static VIRTIO: Kind =
    Kind { name: "virtio", tables: &[calls::WAITING, calls::DESCRIPTORS, calls::PUBLISHING, PLAIN] };

/// `selftest`: the doorbell of the self-test device.
pub static SELFTEST: Kind = Kind { name: "selftest", tables: &[calls::WAITING, calls::PUBLISHING] };

/// `reconfigure`: changes of the machine that the guest asks for. A device that goes is taken apart here.
pub static RECONFIGURE: Kind = Kind {
    name: "reconfigure",
    tables: &[
        calls::DESCRIPTORS,
        calls::PUBLISHING,
        calls::KICKING,
        calls::ROUTES,
        calls::SLOTS,
        PLAIN,
        IMAGES,
        RINGS,
        TAP,
        VHOST,
        CONNECTING,
        BACK_END,
    ],
};
