//! What the threads that have a whole machine in hand ask of the kernel: the vCPUs, whose accesses reach every device, and the main thread.

use vmm_core::thread::{Call, Kind, calls, requests};
use vmm_devices::calls::CONNECTING;
use vmm_devices::virtio::block::calls::{IMAGES, RINGS};
use vmm_devices::virtio::net::calls::TAP;
use vmm_devices::virtio::vhost::calls::VHOST;
use vmm_devices::virtio::vhost_user::calls::BACK_END;

/// A device is started, stopped, moved or taken away by an access: its queues come to a worker or leave it, its doorbells and vectors go
/// where the guest wants them.
const ACCESSES: &[Call] = &[Call::any(libc::SYS_read)];

/// `vcpu0`, `vcpu1`…: the vCPUs.
pub(crate) static VCPU: Kind = Kind {
    name: "vcpu",
    tables: &[
        vmm_vcpu::calls::RUN,
        calls::KICKING,
        calls::PUBLISHING,
        calls::ROUTES,
        calls::DESCRIPTORS,
        ACCESSES,
        RINGS,
        TAP,
        VHOST,
        CONNECTING,
        BACK_END,
    ],
};

/// The process ends: sockets are removed, the terminal has its mode again.
pub(crate) const ENDING: &[Call] = &[
    Call::any(libc::SYS_unlink),
    Call::any(libc::SYS_statx),
    Call::ioctl(requests::known(libc::TCGETS)),
    Call::ioctl(requests::known(libc::TCSETS)),
    Call::ioctl(requests::known(libc::TIOCGPGRP)),
];

/// Signals, input of the consoles, clients of their sockets.
const EVENTS: &[Call] = &[
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_getpgrp),
    // The end of the opener.
    Call::any(libc::SYS_wait4),
    Call::any(libc::SYS_preadv2),
    // Threads that were kept off the CPUs of vCPUs have them back.
    Call::any(libc::SYS_sched_getaffinity),
    Call::any(libc::SYS_sched_setaffinity),
    Call::ioctl(requests::known(libc::TIOCGWINSZ)),
];

/// The main thread: the event loop, and the end of the machine, which takes everything apart.
pub(crate) static MAIN: Kind = Kind {
    name: "main",
    tables: &[
        calls::WAITING,
        calls::DESCRIPTORS,
        calls::PUBLISHING,
        calls::KICKING,
        calls::ROUTES,
        calls::SLOTS,
        calls::LOOKING,
        EVENTS,
        ENDING,
        IMAGES,
        RINGS,
        TAP,
        VHOST,
        CONNECTING,
        BACK_END,
    ],
};

/// `teardown-watch`: ends the process where the teardown does not.
pub(crate) static TEARDOWN_WATCH: Kind = Kind { name: "teardown-watch", tables: &[calls::WAITING, ENDING] };

/// What KVM has made is as it was at first.
const RESET: &[Call] = &[
    Call::ioctl(requests::KVM_CHECK_EXTENSION),
    Call::ioctl(requests::KVM_SET_IRQCHIP),
    Call::ioctl(requests::KVM_SET_PIT2),
    Call::ioctl(requests::KVM_SET_CLOCK),
    Call::ioctl(requests::KVM_RUN),
    Call::any(libc::SYS_rt_sigtimedwait),
    Call::ioctl(requests::KVM_SET_SIGNAL_MASK),
    Call::ioctl(requests::KVM_SET_REGS),
    Call::ioctl(requests::KVM_GET_SREGS),
    Call::ioctl(requests::KVM_SET_SREGS),
    Call::ioctl(requests::KVM_SET_SREGS2),
    Call::ioctl(requests::KVM_GET_MSRS),
    Call::ioctl(requests::KVM_SET_MSRS),
    Call::ioctl(requests::KVM_SET_LAPIC),
    Call::ioctl(requests::KVM_GET_MP_STATE),
    Call::ioctl(requests::KVM_SET_MP_STATE),
    Call::ioctl(requests::KVM_SET_VCPU_EVENTS),
    Call::ioctl(requests::KVM_SET_DEBUGREGS),
    // Memory that programs which serve a device still have is made anew.
    Call::any(libc::SYS_memfd_create),
    Call::fcntl(libc::F_ADD_SEALS),
    Call::ioctl(requests::KVM_SET_XSAVE),
    Call::ioctl(requests::KVM_SET_XCRS).elsewhere("a host with XSAVE, which the nested one has not"),
    Call::ioctl(requests::KVM_SET_NESTED_STATE),
];

/// `renewal`: makes the machine of each life but the first.
pub(crate) static RENEWAL: Kind = Kind {
    name: "renewal",
    tables: &[
        calls::WAITING,
        calls::DESCRIPTORS,
        calls::PUBLISHING,
        calls::KICKING,
        calls::ROUTES,
        calls::LOOKING,
        calls::SLOTS,
        RESET,
        IMAGES,
        RINGS,
        TAP,
        VHOST,
        CONNECTING,
        BACK_END,
    ],
};
