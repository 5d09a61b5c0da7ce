//! The interrupt controllers of a machine: KVM's, or an I/O APIC of this program beside KVM's local APICs.

use anyhow::anyhow;
use vmm_core::irq::{self, IrqOptions};
use vmm_core::{Kvm, Vm};

use crate::config::{Irqchip, VmConfig};
use crate::outcome::Failure;

/// Makes what `config` asks for; returns how interrupts work with it. To be called before the first vCPU is made: later KVM refuses the
/// split irqchip, or takes it and does nothing.
pub(super) fn create(kvm: &Kvm, vm: &Vm, config: &VmConfig) -> Result<IrqOptions, Failure> {
    let irqchip = match config.machine.irqchip {
        Irqchip::Kernel => {
            vm.create_irqchip().map_err(Failure::host_cannot)?;
            if config.machine.pit {
                vm.create_pit().map_err(Failure::host_cannot)?;
            }
            irq::Irqchip::Kernel
        }
        Irqchip::Split => {
            split(kvm, vm)?;
            irq::Irqchip::Split
        }
    };
    Ok(IrqOptions::of_host(kvm.capabilities(), irqchip))
}

fn split(kvm: &Kvm, vm: &Vm) -> Result<(), Failure> {
    let host = kvm.capabilities();
    for (there, name) in [
        (host.split_irqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (host.x2apic_destinations, "KVM_CAP_X2APIC_API"),
        (host.irqfd, "KVM_CAP_IRQFD"),
    ] {
        if !there {
            let error = anyhow!("machine.irqchip = \"split\": this host's KVM lacks {name}");
            return Err(Failure::host_cannot(error));
        }
    }
    vm.split_irqchip().map_err(Failure::host_cannot)?;
    vm.enable_x2apic_destinations().map_err(Failure::host_cannot)
}
