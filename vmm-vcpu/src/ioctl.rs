//! Ioctls of a vCPU that kvm-ioctls does not have.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// `struct kvm_signal_mask` with its set, which has the size of the kernel's `sigset_t`.
#[repr(C)]
struct SignalMask {
    length: u32,
    set: [u8; 8],
}

/// `KVM_SET_SIGNAL_MASK`: the signals that are blocked inside `KVM_RUN`, signal n at bit n − 1.
pub(crate) fn set_signal_mask(vcpu: &VcpuFd, blocked: u64) -> io::Result<()> {
    let mask = SignalMask { length: 8, set: blocked.to_ne_bytes() };
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the kernel reads a `length` and then as many bytes as it says, which `mask` has.
    let status = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `KVM_GET_STATS_FD`: a descriptor from which the statistics of the vCPU can be read.
pub(crate) fn stats_fd(vcpu: &VcpuFd) -> io::Result<OwnedFd> {
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the ioctl has no argument.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY:
    // - the kernel made this descriptor just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
