//! The KVM ioctls of the raw baseline, each tied to the type of its argument.
#![expect(unsafe_code, reason = "ioctl")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_cpuid2, kvm_ioeventfd, kvm_irq_routing, kvm_irq_routing_entry, kvm_irqfd,
    kvm_mp_state, kvm_msr_entry, kvm_msrs, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use libc::{Ioctl, c_int, c_ulong};

const KVMIO: u32 = 0xae;

/// Entries a CPUID table has room for; KVM supports fewer than a hundred.
const CPUID_ENTRIES: u32 = 128;

/// Entries of an MSR table: as many as the baseline sets.
const MSR_ENTRIES: u32 = 2;

/// `struct kvm_cpuid2` with room for its entries.
#[repr(C)]
pub struct CpuidTable {
    header: kvm_cpuid2,
    entries: [kvm_cpuid_entry2; CPUID_ENTRIES as usize],
}

impl CpuidTable {
    /// A table that says how many entries it has room for.
    pub fn new() -> Self {
        Self {
            header: kvm_cpuid2 { nent: CPUID_ENTRIES, ..Default::default() },
            entries: [kvm_cpuid_entry2::default(); CPUID_ENTRIES as usize],
        }
    }
}

/// `struct kvm_msrs` with its entries.
#[repr(C)]
pub struct MsrTable {
    header: kvm_msrs,
    entries: [kvm_msr_entry; MSR_ENTRIES as usize],
}

impl MsrTable {
    pub fn new(entries: [kvm_msr_entry; MSR_ENTRIES as usize]) -> Self {
        let header = kvm_msrs { nmsrs: MSR_ENTRIES, ..Default::default() };
        Self { header, entries }
    }
}

/// Routes a routing table has room for: those of the irqchip's pins, and a thousand messages.
pub const ROUTES: usize = 40 + 1000;

/// `struct kvm_irq_routing` with its entries.
#[repr(C)]
pub struct RoutingTable {
    header: kvm_irq_routing,
    entries: [kvm_irq_routing_entry; ROUTES],
}

impl RoutingTable {
    /// A table of `routes`, of which there are at most [`ROUTES`].
    pub fn new(routes: &[kvm_irq_routing_entry]) -> Box<Self> {
        let mut entries = [kvm_irq_routing_entry::default(); ROUTES];
        let count = routes.len().min(ROUTES);
        entries[..count].copy_from_slice(&routes[..count]);
        Box::new(Self { header: kvm_irq_routing { nr: count as u32, ..Default::default() }, entries })
    }
}

/// A request whose argument is a number.
pub struct Number(Ioctl);
/// A request that reads a `T`.
pub struct In<T>(Ioctl, PhantomData<T>);
/// A request that reads and writes a `T`.
pub struct InOut<T>(Ioctl, PhantomData<T>);

// Each line pairs a request with the type that the KVM API documents for it: what makes the calls below
// sound.
pub const GET_API_VERSION: Number = Number(libc::_IO(KVMIO, 0x00));
pub const CREATE_VM: Number = Number(libc::_IO(KVMIO, 0x01));
pub const CHECK_EXTENSION: Number = Number(libc::_IO(KVMIO, 0x03));
pub const GET_VCPU_MMAP_SIZE: Number = Number(libc::_IO(KVMIO, 0x04));
pub const GET_SUPPORTED_CPUID: InOut<CpuidTable> = InOut(libc::_IOWR::<kvm_cpuid2>(KVMIO, 0x05), PhantomData);
pub const CREATE_VCPU: Number = Number(libc::_IO(KVMIO, 0x41));
const SET_USER_MEMORY_REGION: In<kvm_userspace_memory_region> =
    In(libc::_IOW::<kvm_userspace_memory_region>(KVMIO, 0x46), PhantomData);
pub const SET_TSS_ADDR: Number = Number(libc::_IO(KVMIO, 0x47));
pub const SET_IDENTITY_MAP_ADDR: In<u64> = In(libc::_IOW::<u64>(KVMIO, 0x48), PhantomData);
pub const CREATE_IRQCHIP: Number = Number(libc::_IO(KVMIO, 0x60));
pub const SET_GSI_ROUTING: In<RoutingTable> = In(libc::_IOW::<kvm_irq_routing>(KVMIO, 0x6a), PhantomData);
pub const IRQFD: In<kvm_irqfd> = In(libc::_IOW::<kvm_irqfd>(KVMIO, 0x76), PhantomData);
pub const IOEVENTFD: In<kvm_ioeventfd> = In(libc::_IOW::<kvm_ioeventfd>(KVMIO, 0x79), PhantomData);
pub const RUN: Number = Number(libc::_IO(KVMIO, 0x80));
pub const SET_REGS: In<kvm_regs> = In(libc::_IOW::<kvm_regs>(KVMIO, 0x82), PhantomData);
pub const GET_SREGS: InOut<kvm_sregs> = InOut(libc::_IOR::<kvm_sregs>(KVMIO, 0x83), PhantomData);
pub const SET_SREGS: In<kvm_sregs> = In(libc::_IOW::<kvm_sregs>(KVMIO, 0x84), PhantomData);
pub const SET_MSRS: In<MsrTable> = In(libc::_IOW::<kvm_msrs>(KVMIO, 0x89), PhantomData);
pub const SET_CPUID2: In<CpuidTable> = In(libc::_IOW::<kvm_cpuid2>(KVMIO, 0x90), PhantomData);
pub const SET_MP_STATE: In<kvm_mp_state> = In(libc::_IOW::<kvm_mp_state>(KVMIO, 0x99), PhantomData);

impl Number {
    pub fn call(&self, fd: &impl AsFd, argument: c_ulong) -> io::Result<c_int> {
        // SAFETY: a `Number` request takes its argument by value.
        result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), self.0, argument) })
    }
}

impl<T> In<T> {
    pub fn call(&self, fd: &impl AsFd, argument: &T) -> io::Result<c_int> {
        // SAFETY: the request reads a `T`, of a table as many entries as its header says, which are there.
        result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), self.0, &raw const *argument) })
    }
}

impl<T> InOut<T> {
    pub fn call(&self, fd: &impl AsFd, argument: &mut T) -> io::Result<c_int> {
        // SAFETY: the request reads and writes a `T`, any content of which is valid; a table as above.
        result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), self.0, &raw mut *argument) })
    }
}

/// Gives the guest the memory that `slot` names.
///
/// # Safety
///
/// The memory stays mapped until no vCPU of `vm` runs any more, and nothing in it is borrowed while one does.
pub unsafe fn set_user_memory_region(
    vm: &impl AsFd,
    slot: &kvm_userspace_memory_region,
) -> io::Result<c_int> {
    SET_USER_MEMORY_REGION.call(vm, slot)
}

fn result(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}
