//! Ioctls that kvm-ioctls does not have, or has in a narrower form than the kernel.
#![expect(unsafe_code, reason = "system calls")]

use std::os::fd::{FromRawFd, OwnedFd};

use kvm_bindings::{KVMIO, kvm_ioeventfd};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};

vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// `KVM_IOEVENTFD` with every combination of width and datamatch; kvm-ioctls ties the width to the type of a
/// datamatch, so that "4 bytes, any value" cannot be said.
pub(crate) fn ioeventfd(vm: &VmFd, request: &kvm_ioeventfd) -> Result<(), Error> {
    // SAFETY:
    // - `vm` is a VM descriptor of KVM, for which this ioctl is defined;
    // - the kernel only reads `size_of::<kvm_ioeventfd>()` bytes, which `request` has.
    let status = unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), request) };
    if status == 0 { Ok(()) } else { Err(Error::last()) }
}

/// `KVM_GET_STATS_FD`: a descriptor from which the statistics of the VM can be read.
pub(crate) fn stats_fd(vm: &VmFd) -> Result<OwnedFd, Error> {
    // SAFETY:
    // - `vm` is a VM descriptor of KVM, for which this ioctl is defined;
    // - the ioctl has no argument.
    let fd = unsafe { ioctl(vm, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(Error::last());
    }
    // SAFETY:
    // - the kernel made this descriptor just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
