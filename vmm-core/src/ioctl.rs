//! Ioctls that kvm-ioctls does not have, or has in a narrower form than the kernel.
#![expect(unsafe_code, reason = "system calls")]

use std::os::fd::{FromRawFd, OwnedFd};

use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_ioeventfd};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};

vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
vmm_sys_util::ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
vmm_sys_util::ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
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

/// `KVM_CLEAR_DIRTY_LOG`: of the `count` pages from `first` on, those with a bit in `pages` are clean. Refused if there are
/// fewer bits.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first: u64,
    count: u32,
    pages: &[u64],
) -> Result<(), Error> {
    if pages.len() < (count as usize).div_ceil(64) {
        return Err(Error::new(libc::EINVAL));
    }
    let mut request = kvm_clear_dirty_log {
        slot,
        num_pages: count,
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: pages.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY:
    // - `vm` is a VM descriptor of KVM, for which this ioctl is defined;
    // - the kernel only reads the bitmap, a word for each 64 of `count` pages, which `pages` has by the check above.
    let status = unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut request) };
    if status == 0 { Ok(()) } else { Err(Error::last()) }
}

/// `KVM_RESET_DIRTY_RINGS`: protects the pages that were read from the rings, and empties their entries. A signal (a kick)
/// makes newer kernels stop halfway (Linux 6.16); it is handled when the ioctl returns, and the rest follows.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> Result<(), Error> {
    loop {
        // SAFETY:
        // - `vm` is a VM descriptor of KVM, for which this ioctl is defined;
        // - the ioctl has no argument; in the rings it changes entries only that were given back.
        let count = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
        if count >= 0 {
            return Ok(());
        }
        let error = Error::last();
        if error.errno() != libc::EINTR {
            return Err(error);
        }
    }
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
