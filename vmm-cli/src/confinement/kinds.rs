//! The list of all kinds of threads, whose tables stand beside their code; and those that belong to no other part.

use vmm_core::thread::{Call, Kind, requests};
use vmm_devices::calls::{RECONFIGURE, SELFTEST, VIRTIO};
use vmm_devices::virtio;

use crate::control::calls::{CONTROL, CONTROL_WAIT};
use crate::machine::calls::{MAIN, RENEWAL, TEARDOWN_WATCH, VCPU};
use crate::opener::calls::OPENER;
use crate::sink::{CONSOLE, LOG, MESSAGES};

/// Every kind. One that is not here cannot be confined, so that no machine starts with it.
pub(super) static ALL: &[&Kind] = &[
    &MAIN,
    &VCPU,
    &vmm_vcpu::calls::VCPU,
    &CONSOLE,
    &LOG,
    &MESSAGES,
    &CONTROL,
    &CONTROL_WAIT,
    &RENEWAL,
    &TEARDOWN_WATCH,
    &NURSERY,
    &vmm_core::REAPER,
    &vmm_memory::PREFAULT,
    &RECONFIGURE,
    &SELFTEST,
    &VIRTIO,
    &virtio::balloon::calls::BALLOON,
    &virtio::block::calls::DISK,
    &virtio::block::calls::DISK_IO,
    &virtio::mem::calls::VIRTIO_MEM,
    &virtio::net::calls::NET,
    &virtio::net::calls::NET_STREAM,
    &virtio::vhost_user::calls::VHOST_USER,
    &virtio::vsock::calls::VSOCK,
    &OPENER,
];

/// Starts threads, confines what it has started, ends the process.
const STARTING: &[Call] = &[
    Call::any(libc::SYS_clone3),
    Call::any(libc::SYS_clone).elsewhere("a kernel before Linux 5.3, without clone3"),
    Call::any(libc::SYS_set_robust_list),
    Call::any(libc::SYS_rseq),
    Call::any(libc::SYS_sched_getaffinity),
    Call::any(libc::SYS_sched_setaffinity),
    Call::any(libc::SYS_sched_setscheduler),
    Call::ioctl(requests::KVM_SET_SIGNAL_MASK),
    Call::any(libc::SYS_prctl).is(0, libc::PR_SET_NAME),
    Call::any(libc::SYS_prctl).is(0, libc::PR_SET_NO_NEW_PRIVS),
    Call::any(libc::SYS_seccomp),
    Call::any(libc::SYS_capset),
    Call::any(libc::SYS_landlock_restrict_self),
];

/// Makes what threads have that may not make it themselves: rings, which are restricted before others get them.
const ASIDE: &[Call] = &[Call::any(libc::SYS_io_uring_setup), Call::any(libc::SYS_io_uring_register)];

/// `nursery`: starts threads and makes rings for others, and ends the process after a violation. It has the tables of all others beside its own.
pub(super) static NURSERY: Kind =
    Kind { name: "nursery", tables: &[STARTING, ASIDE, crate::machine::calls::ENDING] };

/// What a thread of `kind` may ask for.
pub(super) fn calls(kind: &'static Kind) -> Vec<Call> {
    let is = |one: &'static Kind, other: *const Kind| std::ptr::eq(one, other);
    // The opener is a process of its own, and nobody's thread.
    let others = ALL.iter().filter(|other| is(kind, &raw const NURSERY) && !is(other, &raw const OPENER));
    let of_others = others.flat_map(|other| other.calls());
    let mut calls: Vec<Call> = Vec::new();
    for call in kind.calls().chain(of_others) {
        if !calls.contains(call) {
            calls.push(*call);
        }
    }
    calls
}

/// What the kernel's documents call system call `number`.
pub(super) fn call_name(number: u64) -> Option<&'static str> {
    usize::try_from(number).ok().and_then(::syscalls::Sysno::new).map(|call| call.name())
}
