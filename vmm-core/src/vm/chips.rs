//! `ChipState`: the chips that KVM emulates for a VM as a whole, as they were at one moment.

use kvm_bindings::{
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};

use super::Vm;
use crate::{IoctlError, Kvm};

/// Both 8259 and the I/O APIC, and the i8254.
const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The interrupt controllers and the timer of a VM. See the module documentation.
#[derive(Clone, Default)]
pub struct ChipState {
    controllers: Vec<kvm_irqchip>,
    pit: Option<kvm_pit_state2>,
}

impl Vm {
    /// The state of the interrupt controllers that [`create_irqchip`](Self::create_irqchip) has made, if `irqchip`, and of the
    /// timer of [`create_pit`](Self::create_pit), if `pit`.
    pub fn chips(&self, irqchip: bool, pit: bool) -> Result<ChipState, IoctlError> {
        let wanted = if irqchip { &CONTROLLERS[..] } else { &[] };
        let state = |&chip_id: &u32| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(IoctlError::of("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        let controllers = wanted.iter().map(state).collect::<Result<_, IoctlError>>()?;
        let pit = pit.then(|| self.fd.get_pit2().map_err(IoctlError::of("KVM_GET_PIT2"))).transpose()?;
        Ok(ChipState { controllers, pit })
    }

    /// Puts the chips back into this state. Counters of the timer begin anew. Lines that somebody still asserts stay so.
    pub fn set_chips(&self, state: &ChipState) -> Result<(), IoctlError> {
        for chip in &state.controllers {
            self.fd.set_irqchip(chip).map_err(IoctlError::of("KVM_SET_IRQCHIP"))?;
        }
        state.pit.as_ref().map_or(Ok(()), |pit| self.fd.set_pit2(pit).map_err(IoctlError::of("KVM_SET_PIT2")))
    }

    /// Sets the clock behind kvmclock, which is 0 when a VM is made.
    pub fn set_clock(&self, nanoseconds: u64) -> Result<(), IoctlError> {
        let clock = kvm_clock_data { clock: nanoseconds, ..Default::default() };
        self.fd.set_clock(&clock).map_err(IoctlError::of("KVM_SET_CLOCK"))
    }

    /// Has a triple fault that is on its way belong to the state of its vCPU, so that a vCPU that is reset does not have it any
    /// more. Without effect where KVM lacks `KVM_CAP_X86_TRIPLE_FAULT_EVENT` (Linux 6.0).
    pub fn show_triple_faults(&self, kvm: &Kvm) -> Result<(), IoctlError> {
        if kvm.check_extension(KVM_CAP_X86_TRIPLE_FAULT_EVENT) == 0 {
            return Ok(());
        }
        self.enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
            .map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_X86_TRIPLE_FAULT_EVENT)"))
    }
}
