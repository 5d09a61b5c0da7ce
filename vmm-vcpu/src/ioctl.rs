//! Ioctls of a vCPU that kvm-ioctls does not have, or has for areas of a fixed size only.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use kvm_bindings::{KVM_CAP_XSAVE2, KVMIO, kvm_nested_state, kvm_signal_mask, kvm_sregs2, kvm_xsave};
use kvm_ioctls::VcpuFd;
use vmm_core::Kvm;
use vmm_sys_util::errno::Error;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
vmm_sys_util::ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
vmm_sys_util::ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
vmm_sys_util::ioctl_iowr_nr!(KVM_GET_NESTED_STATE, KVMIO, 0xbe, kvm_nested_state);
vmm_sys_util::ioctl_iow_nr!(KVM_SET_NESTED_STATE, KVMIO, 0xbf, kvm_nested_state);
vmm_sys_util::ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
vmm_sys_util::ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
vmm_sys_util::ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);

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

/// The answer of an ioctl that returns nothing but its success.
fn done(status: i32) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(Error::last()) }
}

/// `KVM_GET_SREGS2`; needs `KVM_CAP_SREGS2`.
pub(crate) fn sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the kernel writes `size_of::<kvm_sregs2>()` bytes, all integers.
    done(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// `KVM_SET_SREGS2`; needs `KVM_CAP_SREGS2`.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), Error> {
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the kernel only reads `size_of::<kvm_sregs2>()` bytes, which `sregs` has.
    done(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// Bytes of the area of `KVM_GET_XSAVE2` and `KVM_SET_XSAVE`. It grows when the process is permitted more state
/// components (`arch_prctl`), and never shrinks.
pub(crate) fn xsave_size(kvm: &Kvm) -> usize {
    (kvm.check_extension(KVM_CAP_XSAVE2) as usize).max(size_of::<kvm_xsave>())
}

/// `KVM_GET_XSAVE2`, or `KVM_GET_XSAVE` on a kernel (before 5.17) whose area always has 4096 bytes.
pub(crate) fn xsave(vcpu: &VcpuFd, kvm: &Kvm) -> Result<Vec<u8>, Error> {
    let request = if kvm.check_extension(KVM_CAP_XSAVE2) > 0 { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    let mut area = vec![0_u8; xsave_size(kvm)];
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which both ioctls are defined;
    // - the kernel writes at most as many bytes as KVM_CAP_XSAVE2 says: that was asked now, and what the vCPU was
    //   permitted earlier is not more.
    done(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })?;
    Ok(area)
}

/// `KVM_SET_XSAVE`. An `area` shorter than [`xsave_size`] is refused.
pub(crate) fn set_xsave(vcpu: &VcpuFd, kvm: &Kvm, area: &[u8]) -> Result<(), Error> {
    if area.len() < xsave_size(kvm) {
        return Err(Error::new(libc::EINVAL));
    }
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the kernel only reads, and at most `xsave_size` bytes, which `area` has by the check above.
    done(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) })
}

/// Where the header of a nested state has its size in bytes, header included.
const NESTED_SIZE: std::ops::Range<usize> = 4..8;

/// The size that the header of a nested state names, if there is a header.
pub(crate) fn nested_size(state: &[u8]) -> Option<usize> {
    let bytes = state.get(..size_of::<kvm_nested_state>())?.get(NESTED_SIZE)?;
    usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
}

/// `KVM_GET_NESTED_STATE`: a header and what follows it, in at most `limit` bytes; needs `KVM_CAP_NESTED_STATE`, whose
/// value is the limit.
pub(crate) fn nested_state(vcpu: &VcpuFd, limit: u32) -> Result<Vec<u8>, Error> {
    let mut state = vec![0_u8; (limit as usize).max(size_of::<kvm_nested_state>())];
    if let Some(size) = state.get_mut(NESTED_SIZE) {
        size.copy_from_slice(&limit.to_ne_bytes());
    }
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the kernel writes at most as many bytes as the header says, which `state` has.
    done(unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_NESTED_STATE(), state.as_mut_ptr()) })?;
    let size = nested_size(&state).unwrap_or(0);
    state.truncate(size);
    Ok(state)
}

/// `KVM_SET_NESTED_STATE`. A `state` without a header, or shorter than its header says, is refused.
pub(crate) fn set_nested_state(vcpu: &VcpuFd, state: &[u8]) -> Result<(), Error> {
    if nested_size(state).is_none_or(|size| size > state.len()) {
        return Err(Error::new(libc::EINVAL));
    }
    // SAFETY:
    // - `vcpu` is a vCPU descriptor of KVM, for which this ioctl is defined;
    // - the kernel only reads, and at most as many bytes as the header says, which `state` has by the check above.
    done(unsafe { ioctl_with_ptr(vcpu, KVM_SET_NESTED_STATE(), state.as_ptr()) })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_nested_state_is_in_its_header() {
        let mut state = vec![0; 128];
        state[NESTED_SIZE].copy_from_slice(&4224_u32.to_ne_bytes());
        assert_eq!(nested_size(&state), Some(4224));
        assert_eq!(nested_size(&state[..127]), None);
    }
}
