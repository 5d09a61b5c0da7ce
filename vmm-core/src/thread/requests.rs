//! Requests of `ioctl` by their numbers, as tables of calls have them (`asm-generic/ioctl.h`, `linux/kvm.h`).

use libc::c_uint;

const WRITE: c_uint = 1;
const READ: c_uint = 2;

/// The kernel's `_IOC`: direction, type, number, size of the argument in bytes.
const fn request(direction: c_uint, kind: c_uint, number: c_uint, size: usize) -> c_uint {
    direction << 30 | (size as c_uint) << 16 | kind << 8 | number
}

/// `_IO`.
#[must_use]
pub const fn io(kind: c_uint, number: c_uint) -> c_uint {
    request(0, kind, number, 0)
}

/// `_IOR`: the kernel writes a `T`.
#[must_use]
pub const fn ior<T>(kind: c_uint, number: c_uint) -> c_uint {
    request(READ, kind, number, size_of::<T>())
}

/// `_IOW`: the kernel reads a `T`.
#[must_use]
pub const fn iow<T>(kind: c_uint, number: c_uint) -> c_uint {
    request(WRITE, kind, number, size_of::<T>())
}

/// `_IOWR`: both.
#[must_use]
pub const fn iowr<T>(kind: c_uint, number: c_uint) -> c_uint {
    request(READ | WRITE, kind, number, size_of::<T>())
}

/// A request that libc knows.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the kernel takes 32 bits of it")]
pub const fn known(request: libc::c_ulong) -> c_uint {
    request as c_uint
}

/// Whether a descriptor blocks.
pub const FIONBIO: c_uint = known(libc::FIONBIO);

macro_rules! kvm {
    ($($name:ident = $encode:ident $(::<$argument:ty>)? ($number:literal);)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            pub const $name: c_uint = $encode $(::<$argument>)? (kvm_bindings::KVMIO, $number);
        )*
    };
}

kvm! {
    KVM_CHECK_EXTENSION = io(0x03);
    KVM_GET_DIRTY_LOG = iow::<kvm_bindings::kvm_dirty_log>(0x42);
    KVM_SET_USER_MEMORY_REGION = iow::<kvm_bindings::kvm_userspace_memory_region>(0x46);
    KVM_IRQ_LINE = iow::<kvm_bindings::kvm_irq_level>(0x61);
    KVM_GET_IRQCHIP = iowr::<kvm_bindings::kvm_irqchip>(0x62);
    KVM_SET_GSI_ROUTING = iow::<kvm_bindings::kvm_irq_routing>(0x6a);
    KVM_IRQFD = iow::<kvm_bindings::kvm_irqfd>(0x76);
    KVM_IOEVENTFD = iow::<kvm_bindings::kvm_ioeventfd>(0x79);
    KVM_RUN = io(0x80);
    KVM_GET_REGS = ior::<kvm_bindings::kvm_regs>(0x81);
    KVM_GET_SREGS = ior::<kvm_bindings::kvm_sregs>(0x83);
    KVM_TRANSLATE = iowr::<kvm_bindings::kvm_translation>(0x85);
    KVM_SIGNAL_MSI = iow::<kvm_bindings::kvm_msi>(0xa5);
    KVM_KVMCLOCK_CTRL = io(0xad);
    KVM_SET_IRQCHIP = ior::<kvm_bindings::kvm_irqchip>(0x63);
    KVM_SET_CLOCK = iow::<kvm_bindings::kvm_clock_data>(0x7b);
    KVM_SET_REGS = iow::<kvm_bindings::kvm_regs>(0x82);
    KVM_SET_SREGS = iow::<kvm_bindings::kvm_sregs>(0x84);
    KVM_GET_MSRS = iowr::<kvm_bindings::kvm_msrs>(0x88);
    KVM_SET_MSRS = iow::<kvm_bindings::kvm_msrs>(0x89);
    KVM_SET_SIGNAL_MASK = iow::<u32>(0x8b);
    KVM_SET_LAPIC = iow::<kvm_bindings::kvm_lapic_state>(0x8f);
    KVM_GET_MP_STATE = ior::<kvm_bindings::kvm_mp_state>(0x98);
    KVM_SET_MP_STATE = iow::<kvm_bindings::kvm_mp_state>(0x99);
    KVM_SET_VCPU_EVENTS = iow::<kvm_bindings::kvm_vcpu_events>(0xa0);
    KVM_SET_PIT2 = iow::<kvm_bindings::kvm_pit_state2>(0xa0);
    KVM_SET_DEBUGREGS = iow::<kvm_bindings::kvm_debugregs>(0xa2);
    KVM_SET_XSAVE = iow::<kvm_bindings::kvm_xsave>(0xa5);
    KVM_SET_XCRS = iow::<kvm_bindings::kvm_xcrs>(0xa7);
    KVM_SET_SREGS2 = iow::<kvm_bindings::kvm_sregs2>(0xcd);
    KVM_SET_NESTED_STATE = iow::<kvm_bindings::kvm_nested_state>(0xbf);
    KVM_CLEAR_DIRTY_LOG = iowr::<kvm_bindings::kvm_clear_dirty_log>(0xc0);
    KVM_RESET_DIRTY_RINGS = io(0xc7);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_headers() {
        // As `strace -e raw=ioctl` shows them.
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(KVM_IRQFD, 0x4020_ae76);
        assert_eq!(KVM_IOEVENTFD, 0x4040_ae79);
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(KVM_SET_GSI_ROUTING, 0x4008_ae6a);
        assert_eq!(KVM_TRANSLATE, 0xc018_ae85);
        assert_eq!(KVM_GET_SREGS, 0x8138_ae83);
    }
}
