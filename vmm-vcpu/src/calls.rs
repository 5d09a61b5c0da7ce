//! What the threads of vCPUs ask of the kernel.

use vmm_core::thread::requests;
use vmm_core::thread::{Call, Kind, calls};

/// The run loop and the kick protocol, the report of a crash.
pub const RUN: &[Call] = &[
    Call::ioctl(requests::KVM_RUN),
    Call::ioctl(requests::KVM_KVMCLOCK_CTRL),
    Call::ioctl(requests::KVM_GET_REGS),
    Call::ioctl(requests::KVM_GET_SREGS),
    Call::ioctl(requests::KVM_TRANSLATE),
    Call::ioctl(requests::KVM_RESET_DIRTY_RINGS),
    // A kick that is a blocked signal is taken there.
    Call::any(libc::SYS_rt_sigtimedwait),
];

/// A vCPU whose exits nobody handles: embedders add what the devices need that its accesses reach.
pub static VCPU: Kind = Kind { name: "vcpu", tables: &[RUN, calls::KICKING, calls::PUBLISHING] };
