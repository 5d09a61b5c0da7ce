//! What devices that other programs serve ask of the kernel.

use vmm_core::thread::{Call, Kind, calls};

use crate::calls::CONNECTING;

/// The other program is told and asked.
pub const BACK_END: &[Call] = &[
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_getsockopt),
];

/// `vhost-user`: what is left of a device that another process serves, and the limit of its waits.
pub static VHOST_USER: Kind = Kind {
    name: "vhost-user",
    tables: &[calls::WAITING, calls::DESCRIPTORS, calls::PUBLISHING, calls::ROUTES, CONNECTING, BACK_END],
};
