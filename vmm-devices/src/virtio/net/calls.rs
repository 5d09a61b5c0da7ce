//! What the threads of network devices ask of the kernel.

use vmm_core::thread::{Call, Kind, calls, requests};

use crate::calls::CONNECTING;
use crate::virtio::vhost::calls::VHOST;

/// An interface is taken again, and told what the driver takes.
pub const TAP: &[Call] = &[
    Call::ioctl(requests::known(libc::SIOCGIFINDEX)),
    Call::ioctl(requests::known(libc::TUNSETIFF)),
    Call::ioctl(requests::known(libc::TUNSETVNETHDRSZ)),
    Call::ioctl(requests::known(libc::TUNSETVNETLE)),
    Call::ioctl(requests::known(libc::TUNSETOFFLOAD)),
    Call::ioctl(requests::known(libc::TUNSETQUEUE)),
];

/// Frames.
const FRAMES: &[Call] = &[Call::any(libc::SYS_readv), Call::any(libc::SYS_writev)];

/// `net`: a pair of queues of a network device.
pub static NET: Kind = Kind {
    name: "net",
    tables: &[calls::WAITING, calls::DESCRIPTORS, calls::PUBLISHING, calls::ROUTES, FRAMES, TAP, VHOST],
};

/// Another program's stream.
const STREAM: &[Call] = &[Call::any(libc::SYS_recvfrom), Call::any(libc::SYS_sendto)];

/// `net-stream`: frames between a pair of queues and a stream.
pub static NET_STREAM: Kind =
    Kind { name: "net-stream", tables: &[calls::WAITING, calls::DESCRIPTORS, CONNECTING, FRAMES, STREAM] };
