//! `Vm`: the VM descriptor and the ioctls that are issued on it.

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_CAP_X86_DISABLE_EXITS, KVM_IRQCHIP_IOAPIC, KVM_MEM_READONLY,
    KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch,
    kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_irqchip, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace, IrqFds, MemorySlot, MemorySlots};
use crate::{DisabledExits, IoctlError, Kvm, ioctl};

/// A VM of KVM. It ends when this value and every descriptor made from it, of vCPUs and of statistics, are dropped.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
}

impl Vm {
    /// Makes a VM without memory, vCPUs or interrupt controller.
    pub fn create(kvm: &Kvm) -> Result<Self, IoctlError> {
        Ok(Self { fd: kvm.create_vm()? })
    }

    /// Gives KVM the guest-physical pages that VMX without unrestricted guest needs for itself: three pages at
    /// `tss`, one at `identity_map`. To be called before the first vCPU is made; the guest must have no RAM there.
    pub fn set_vmx_pages(&self, tss: u32, identity_map: u64) -> Result<(), IoctlError> {
        self.fd
            .set_identity_map_address(identity_map)
            .map_err(IoctlError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
        self.fd.set_tss_address(tss as usize).map_err(IoctlError::of("KVM_SET_TSS_ADDR"))
    }

    /// Leaves `exits` to the processor (`KVM_CAP_X86_DISABLE_EXITS`). To be called before the first vCPU is made and with
    /// nothing that [`Capabilities::disable_exits`](crate::Capabilities::disable_exits) lacks: otherwise some kernels
    /// refuse, and others accept and do nothing.
    pub fn disable_exits(&self, exits: DisabledExits) -> Result<(), IoctlError> {
        self.enable(KVM_CAP_X86_DISABLE_EXITS, exits.mask())
            .map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_X86_DISABLE_EXITS)"))
    }

    /// Limits the time that KVM polls on behalf of a vCPU that has halted, before it gives the host CPU away; 0: it does
    /// not poll. Goes over the host's limit for this VM (`KVM_CAP_HALT_POLL`).
    pub fn set_halt_poll(&self, nanoseconds: u32) -> Result<(), IoctlError> {
        self.enable(KVM_CAP_HALT_POLL, nanoseconds)
            .map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_HALT_POLL)"))
    }

    fn enable(&self, cap: u32, argument: u32) -> Result<(), kvm_ioctls::Error> {
        let args = [argument.into(), 0, 0, 0];
        self.fd.enable_cap(&kvm_enable_cap { cap, args, ..Default::default() })
    }

    /// Makes the in-kernel interrupt controllers: two 8259 PICs, an I/O APIC, and a local APIC in each vCPU made
    /// afterwards. GSIs 0–15 reach PIC and I/O APIC, 16–23 the I/O APIC.
    pub fn create_irqchip(&self) -> Result<(), IoctlError> {
        self.fd.create_irq_chip().map_err(IoctlError::of("KVM_CREATE_IRQCHIP"))
    }

    /// Whether the guest has masked `pin` of the in-kernel I/O APIC, as it is after a reset. A pin that does not exist
    /// counts as masked.
    #[expect(unsafe_code, reason = "the state of an irqchip is a union")]
    pub fn ioapic_pin_masked(&self, pin: u32) -> Result<bool, IoctlError> {
        const MASK: u64 = 1 << 16;
        let mut irqchip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        self.fd.get_irqchip(&mut irqchip).map_err(IoctlError::of("KVM_GET_IRQCHIP"))?;
        // SAFETY:
        // - the kernel filled the variant that `chip_id` names;
        // - every bit pattern of it is a value.
        let ioapic = unsafe { irqchip.chip.ioapic };
        let entry = usize::try_from(pin).ok().and_then(|pin| ioapic.redirtbl.get(pin));
        // SAFETY:
        // - both variants of the entry have 64 bits, and each bit pattern is a value.
        Ok(entry.is_none_or(|entry| unsafe { entry.bits } & MASK != 0))
    }

    /// Makes the in-kernel i8254 timer, with its gate and output at port 0x61. Needs the irqchip.
    pub fn create_pit(&self) -> Result<(), IoctlError> {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(config).map_err(IoctlError::of("KVM_CREATE_PIT2"))
    }

    /// Makes vCPU `index`, whose APIC id is the same number.
    pub fn create_vcpu(&self, index: u32) -> Result<VcpuFd, IoctlError> {
        self.fd.create_vcpu(u64::from(index)).map_err(IoctlError::of("KVM_CREATE_VCPU"))
    }

    /// Makes a descriptor for the VM's statistics.
    pub(crate) fn stats_fd(&self) -> Result<OwnedFd, IoctlError> {
        ioctl::stats_fd(&self.fd).map_err(IoctlError::of("KVM_GET_STATS_FD"))
    }
}

impl MemorySlots for Vm {
    #[expect(unsafe_code, reason = "the guest writes to the memory behind a slot")]
    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError> {
        let region = kvm_userspace_memory_region {
            slot: slot.id,
            flags: if slot.read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: slot.guest_address,
            memory_size: slot.size,
            userspace_addr: slot.host_address,
        };
        // SAFETY:
        // - the caller promises that the host memory stays mapped and holds only guest RAM while the slot exists.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(IoctlError::of("KVM_SET_USER_MEMORY_REGION"))
    }
}

/// The kernel's form of a doorbell; `deassign` undoes an earlier registration of the same form.
fn ioeventfd_request(address: &DoorbellAddress, fd: &EventFd, deassign: bool) -> kvm_ioeventfd {
    let mut flags = 0;
    if address.space == DoorbellSpace::Pio {
        flags |= 1 << kvm_ioeventfd_flag_nr_pio;
    }
    if address.datamatch.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    if deassign {
        flags |= 1 << kvm_ioeventfd_flag_nr_deassign;
    }
    kvm_ioeventfd {
        datamatch: address.datamatch.unwrap_or(0),
        addr: address.address,
        len: address.width,
        fd: fd.as_raw_fd(),
        flags,
        ..Default::default()
    }
}

impl DoorbellFds for Vm {
    fn attach_doorbell(&self, address: &DoorbellAddress, fd: &EventFd) -> Result<(), IoctlError> {
        ioctl::ioeventfd(&self.fd, &ioeventfd_request(address, fd, false))
            .map_err(IoctlError::of("KVM_IOEVENTFD"))
    }

    fn detach_doorbell(&self, address: &DoorbellAddress, fd: &EventFd) -> Result<(), IoctlError> {
        ioctl::ioeventfd(&self.fd, &ioeventfd_request(address, fd, true))
            .map_err(IoctlError::of("KVM_IOEVENTFD (deassign)"))
    }
}

impl IrqFds for Vm {
    fn attach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError> {
        self.fd.register_irqfd(fd, gsi).map_err(IoctlError::of("KVM_IRQFD"))
    }

    fn detach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError> {
        self.fd.unregister_irqfd(fd, gsi).map_err(IoctlError::of("KVM_IRQFD (deassign)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_of_any_width_carries_no_datamatch_flag() {
        let fd = EventFd::new(0).unwrap();
        let address =
            DoorbellAddress { space: DoorbellSpace::Mmio, address: 0x1000, width: 0, datamatch: None };
        let request = ioeventfd_request(&address, &fd, false);
        assert_eq!((request.flags, request.len, request.addr), (0, 0, 0x1000));
    }

    #[test]
    fn attach_and_detach_differ_only_in_the_deassign_flag() {
        let fd = EventFd::new(0).unwrap();
        let address =
            DoorbellAddress { space: DoorbellSpace::Pio, address: 0xf4, width: 2, datamatch: Some(7) };
        let (on, off) = (ioeventfd_request(&address, &fd, false), ioeventfd_request(&address, &fd, true));
        assert_eq!((on.datamatch, on.len, on.flags), (7, 2, 0b011));
        assert_eq!(kvm_ioeventfd { flags: off.flags & !0b100, ..off }, on);
        assert_eq!(off.flags, 0b111);
    }
}
