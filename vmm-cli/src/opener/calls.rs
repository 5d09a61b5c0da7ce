//! What the opener asks of the kernel.

use vmm_core::thread::{Call, Kind};

/// It is asked, connects, and hands over what it has connected.
const OPENING: &[Call] = &[
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_socket)
        .is(0, libc::AF_UNIX)
        .is(1, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK),
    Call::any(libc::SYS_connect),
    Call::any(libc::SYS_fchdir),
];

/// `opener`: the process that connects to sockets of the host, the only one that may.
pub(crate) static OPENER: Kind = Kind { name: "opener", tables: &[OPENING] };
