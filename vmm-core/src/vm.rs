//! `Vm`: the VM descriptor and the ioctls that are issued on it.

mod chips;
mod dirty;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_X86_DISABLE_EXITS,
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap,
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irqchip, kvm_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

pub use chips::ChipState;

use crate::irq::{IOAPIC_PINS, MsiMessage};
use crate::seam::{
    DoorbellAddress, DoorbellFds, DoorbellSpace, IrqFds, IrqInjection, IrqRoute, IrqRoutes, IrqTarget,
    MemorySlot, MemorySlots,
};
use crate::{DirtyMechanism, DirtyRings, DisabledExits, IoctlError, Kvm, ioctl};

/// A VM of KVM. It ends when this value and every descriptor made from it, of vCPUs and of statistics, are dropped.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    dirty: OnceLock<DirtyMechanism>,
    rings: Arc<DirtyRings>,
}

impl Vm {
    /// Makes a VM without memory, vCPUs or interrupt controller.
    pub fn create(kvm: &Kvm) -> Result<Self, IoctlError> {
        Ok(Self { fd: kvm.create_vm()?, dirty: OnceLock::new(), rings: Arc::default() })
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

    /// Leaves the I/O APIC to user space: KVM makes only the local APICs, and reports the end of interrupts that the routes
    /// of GSIs 0–23 name (`KVM_EXIT_IOAPIC_EOI`). There is no 8259 then and no i8254. To be called before the first vCPU is
    /// made.
    pub fn split_irqchip(&self) -> Result<(), IoctlError> {
        self.enable(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS)
            .map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_SPLIT_IRQCHIP)"))
    }

    /// Lets messages have 32-bit destinations, and lets 255 be one of them instead of a broadcast. To be called before
    /// the first vCPU is made.
    pub fn enable_x2apic_destinations(&self) -> Result<(), IoctlError> {
        let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        self.enable(KVM_CAP_X2APIC_API, flags).map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_X2APIC_API)"))
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

/// What KVM had before there was a capability that says it.
const OLD_SLOT_LIMIT: u32 = 32;

impl MemorySlots for Vm {
    fn slot_limit(&self) -> u32 {
        let limit = u32::try_from(self.fd.check_extension_int(Cap::NrMemslots)).unwrap_or(0);
        if limit == 0 { OLD_SLOT_LIMIT } else { limit }
    }

    #[expect(unsafe_code, reason = "the guest writes to the memory behind a slot")]
    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError> {
        let flag = |wanted, flag| if wanted { flag } else { 0 };
        let region = kvm_userspace_memory_region {
            slot: slot.id,
            flags: flag(slot.read_only, KVM_MEM_READONLY) | flag(slot.log_dirty, KVM_MEM_LOG_DIRTY_PAGES),
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

    fn attach_resampled_irqfd(&self, gsi: u32, fd: &EventFd, resample: &EventFd) -> Result<(), IoctlError> {
        self.fd
            .register_irqfd_with_resample(fd, resample, gsi)
            .map_err(IoctlError::of("KVM_IRQFD (resample)"))
    }

    fn detach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError> {
        self.fd.unregister_irqfd(fd, gsi).map_err(IoctlError::of("KVM_IRQFD (deassign)"))
    }
}

/// Address and data of a message as KVM takes them: lower and upper half, data.
fn halves(message: MsiMessage) -> (u32, u32, u32) {
    ((message.address & 0xffff_ffff) as u32, (message.address >> 32) as u32, message.data)
}

/// The kernel's form of a route.
fn routing_entry(route: &IrqRoute) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: route.gsi, ..Default::default() };
    let irqchip = |irqchip, pin| kvm_irq_routing_irqchip { irqchip, pin };
    match route.target {
        IrqTarget::Ioapic { pin } => {
            entry.type_ = KVM_IRQ_ROUTING_IRQCHIP;
            entry.u.irqchip = irqchip(KVM_IRQCHIP_IOAPIC, pin);
        }
        IrqTarget::Pic { second, input } => {
            entry.type_ = KVM_IRQ_ROUTING_IRQCHIP;
            entry.u.irqchip =
                irqchip(if second { KVM_IRQCHIP_PIC_SLAVE } else { KVM_IRQCHIP_PIC_MASTER }, input);
        }
        IrqTarget::Message(message) => {
            let (address_lo, address_hi, data) = halves(message);
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi = kvm_irq_routing_msi { address_lo, address_hi, data, ..Default::default() };
        }
    }
    entry
}

impl IrqRoutes for Vm {
    fn set_routes(&self, routes: &[IrqRoute]) -> Result<(), IoctlError> {
        let entries: Vec<_> = routes.iter().map(routing_entry).collect();
        KvmIrqRouting::from_entries(&entries)
            .map_err(|_| vmm_sys_util::errno::Error::new(libc::E2BIG))
            .and_then(|table| self.fd.set_gsi_routing(&table))
            .map_err(IoctlError::of("KVM_SET_GSI_ROUTING"))
    }
}

impl IrqInjection for Vm {
    fn set_line(&self, gsi: u32, high: bool) -> Result<(), IoctlError> {
        self.fd.set_irq_line(gsi, high).map_err(IoctlError::of("KVM_IRQ_LINE"))
    }

    fn signal_message(&self, message: MsiMessage) -> Result<(), IoctlError> {
        let (address_lo, address_hi, data) = halves(message);
        let msi = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        // A positive answer counts the CPUs that took it; none is no error: the guest may have them all off.
        self.fd.signal_msi(msi).map(drop).map_err(IoctlError::of("KVM_SIGNAL_MSI"))
    }

    #[expect(unsafe_code, reason = "the state of an irqchip is a union")]
    fn ioapic_pin_masked(&self, pin: u32) -> Result<bool, IoctlError> {
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
