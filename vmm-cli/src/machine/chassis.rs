//! `Chassis`: what of a machine KVM makes, a VM and its vCPUs, made once and reset for each further life.
//!
//! What is born with a VM stays: its settings, its interrupt controllers and timer, its vCPUs with their run pages and dirty
//! rings. Each life has guest memory slots, interrupt routes and devices of its own (docs/adr/0014-a-machine-is-reset-in-place.md).
//! No vCPU has a thread while the chassis is reset.

use std::sync::Arc;

use anyhow::anyhow;
use vmm_core::irq::{IrqOptions, IrqRouter};
use vmm_core::seam::{DirtyLog, InterruptVm};
use vmm_core::{ChipState, DirtyMechanism, Kvm, Vm};
use vmm_memory::{AddressSpace, DirtyTracker};
use vmm_vcpu::x86_64::{CpuidTemplate, VcpuState};
use vmm_vcpu::{Mechanism, Vcpu};

use super::{irqchip, layout};
use crate::config::{Irqchip, Kick, OnReset, VmConfig};
use crate::memory::{Ram, dirty_mechanism, hotplug};
use crate::outcome::Failure;
use crate::processors::Processors;
use crate::stats::{KernelStats, StatsFiles};

/// See the module documentation.
pub struct Chassis {
    /// Those that have no thread: all of them, or none.
    vcpus: Vec<Vcpu>,
    /// What the guest has of the host's memory.
    ram: Ram,
    address_bits: u32,
    mechanism: Mechanism,
    irqs: IrqOptions,
    stats: Option<Arc<StatsFiles>>,
    /// Absent for a machine that has one life only.
    birth: Option<Birth>,
    vm: Arc<Vm>,
}

/// What a chassis was like before its first life.
struct Birth {
    vcpus: Vec<VcpuState>,
    chips: ChipState,
}

/// A machine for one life, which has memory and no devices.
pub struct Bare {
    pub(super) memory: Arc<AddressSpace>,
    pub(super) dirty: Arc<DirtyTracker>,
    pub(super) router: IrqRouter,
    pub(super) kernel_stats: Option<KernelStats>,
    pub(super) chassis: Chassis,
}

impl Chassis {
    /// Makes the VM of `config` with its vCPUs, and shows it `ram`.
    ///
    /// # Errors
    /// A [`Failure`] that says whose it is to mend; nothing of it is left then.
    pub(crate) fn build(
        kvm: &Kvm,
        config: &VmConfig,
        processors: &Processors,
        ram: Ram,
    ) -> Result<Bare, Failure> {
        let mut cpuid = cpuid(kvm, config)?;
        processors.describe(&mut cpuid);
        let vm = Arc::new(Vm::create(kvm).map_err(Failure::host_cannot)?);
        processors.set_up(&vm).map_err(Failure::host_cannot)?;
        vm.set_vmx_pages(layout::TSS, layout::IDENTITY_MAP).map_err(Failure::host_cannot)?;
        vm.set_dirty_mechanism(dirty_mechanism(kvm, &config.memory)?).map_err(Failure::host_cannot)?;
        let lives_again = config.machine.on_reset == OnReset::Restart;
        if lives_again {
            vm.show_triple_faults(kvm).map_err(Failure::host_cannot)?;
        }
        let address_bits = cpuid.physical_address_bits();
        // All slots before irqchip and doorbells: the first slot change after a change of the I/O bus waits for a
        // grace period of the kernel.
        let (memory, dirty) = show(&vm, address_bits, &ram)?;
        let irqs = irqchip::create(kvm, &vm, config)?;
        let vcpus = configured_vcpus(kvm, &vm, &cpuid)?;
        let wanted = config.keeps_kernel_stats() && kvm.capabilities().binary_stats;
        let stats = wanted.then(|| StatsFiles::open(&vm, &vcpus).map(Arc::new));
        let stats = stats.transpose().map_err(Failure::host_cannot)?;
        let birth = lives_again.then(|| Birth::of(&vm, &vcpus, config)).transpose()?;
        let router = IrqRouter::new(Arc::clone(&vm) as Arc<dyn InterruptVm>, irqs);
        let kernel_stats = stats.as_ref().map(KernelStats::new);
        let mechanism = mechanism(kvm, config.cpu.kick);
        let chassis = Self { vcpus, ram, address_bits, mechanism, irqs, stats, birth, vm };
        Ok(Bare { memory, dirty, router, kernel_stats, chassis })
    }

    /// Makes it what it was before its first life, with `ram`, which nobody has had a part of before.
    ///
    /// # Errors
    /// What KVM refuses.
    pub(crate) fn renew(mut self, ram: Ram) -> Result<Bare, Failure> {
        let birth = self.birth.as_ref().ok_or_else(|| Failure::internal(anyhow!("a machine of one life")))?;
        // Before there is memory that KVM could still write to for the guest that was.
        for (vcpu, birth) in self.vcpus.iter_mut().zip(&birth.vcpus) {
            vcpu.reset(birth, self.mechanism).map_err(Failure::host_cannot)?;
        }
        self.vm.set_chips(&birth.chips).map_err(Failure::host_cannot)?;
        // What a VM begins with.
        self.vm.set_clock(0).map_err(Failure::host_cannot)?;
        if matches!(self.vm.dirty_mechanism(), DirtyMechanism::Ring { .. }) {
            self.vm.collect_rings(&mut |_| ()).map_err(Failure::host_cannot)?;
        }
        let (memory, dirty) = show(&self.vm, self.address_bits, &ram)?;
        let router = IrqRouter::renewed(Arc::clone(&self.vm) as Arc<dyn InterruptVm>, self.irqs);
        let router = router.map_err(Failure::host_cannot)?;
        let kernel_stats = self.stats.as_ref().map(KernelStats::of_next_life).transpose();
        let kernel_stats = kernel_stats.map_err(Failure::host_cannot)?;
        Ok(Bare { memory, dirty, router, kernel_stats, chassis: Self { ram, ..self } })
    }

    /// Takes back the vCPUs, whose threads have ended.
    ///
    /// # Errors
    /// One is missing.
    pub(super) fn take_back(&mut self, vcpus: Vec<Vcpu>) -> Result<(), Failure> {
        let expected = self.birth.as_ref().map_or(0, |birth| birth.vcpus.len());
        if vcpus.len() != expected {
            let error = anyhow!("{} of {expected} vCPUs have come back from their threads", vcpus.len());
            return Err(Failure::internal(error));
        }
        self.vcpus = vcpus;
        Ok(())
    }

    /// Gives the vCPUs away, for their threads.
    pub(super) fn take_vcpus(&mut self) -> Vec<Vcpu> {
        std::mem::take(&mut self.vcpus)
    }

    /// Gives up the memory of the guest, for [`memory::renew`](crate::memory::renew).
    pub(crate) fn take_ram(&mut self) -> Ram {
        std::mem::take(&mut self.ram)
    }

    pub(super) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// How vCPUs are kicked.
    pub(super) fn mechanism(&self) -> Mechanism {
        self.mechanism
    }
}

impl Birth {
    fn of(vm: &Vm, vcpus: &[Vcpu], config: &VmConfig) -> Result<Self, Failure> {
        let vcpus = vcpus.iter().map(Vcpu::save).collect::<Result<_, _>>().map_err(Failure::host_cannot)?;
        let is_kernels = config.machine.irqchip == Irqchip::Kernel;
        let chips = vm.chips(is_kernels, is_kernels && config.machine.pit).map_err(Failure::host_cannot)?;
        Ok(Self { vcpus, chips })
    }
}

/// An address space of `vm` with `ram` in it.
fn show(vm: &Arc<Vm>, bits: u32, ram: &Ram) -> Result<(Arc<AddressSpace>, Arc<DirtyTracker>), Failure> {
    let (memory, dirty) =
        DirtyTracker::track(Arc::clone(vm) as Arc<dyn DirtyLog>).map_err(Failure::internal)?;
    let memory = memory.with_address_bits(bits);
    memory.place(ram.clone()).map_err(Failure::host_cannot)?;
    Ok((Arc::new(memory), dirty))
}

/// The mechanism that is asked for, or the one that every KVM has.
fn mechanism(kvm: &Kvm, kick: Kick) -> Mechanism {
    match kick {
        Kick::ImmediateExit if kvm.capabilities().immediate_exit => Mechanism::ImmediateExit,
        Kick::ImmediateExit => {
            tracing::info!("KVM lacks KVM_CAP_IMMEDIATE_EXIT: vCPUs are kicked by signal mask");
            Mechanism::SignalMask
        }
        Kick::SignalMask => Mechanism::SignalMask,
    }
}

/// Checks the size of the machine against the host's KVM and makes the CPUID table.
fn cpuid(kvm: &Kvm, config: &VmConfig) -> Result<CpuidTemplate, Failure> {
    let count = u32::from(config.cpu.count);
    let most = kvm.capabilities().max_vcpus;
    if count as usize > most {
        let error = anyhow!("cpu.count = {count}: this host's KVM takes at most {most} vCPUs");
        return Err(Failure::host_cannot(error));
    }
    let supported = kvm.supported_cpuid().map_err(Failure::host_cannot)?;
    let mut template = CpuidTemplate::new(&supported, kvm.capabilities(), count);
    if config.machine.irqchip == Irqchip::Split {
        template.offer_extended_destinations();
    }
    let bits = template.physical_address_bits();
    let end = layout::ram(config.memory.size.bytes()).last().map_or(0, |range| range.start + range.size);
    if end > 1 << bits {
        let error = anyhow!(
            "memory.size = {}: the guest's last address {:#x} is beyond the {bits} physical address bits of this host",
            config.memory.size,
            end - 1
        );
        return Err(Failure::host_cannot(error));
    }
    hotplug::check_addresses(config, bits)?;
    Ok(template)
}

/// Makes the vCPUs, in the state after reset.
fn configured_vcpus(kvm: &Kvm, vm: &Vm, cpuid: &CpuidTemplate) -> Result<Vec<Vcpu>, Failure> {
    (0..cpuid.vcpus())
        .map(|index| {
            let vcpu = Vcpu::create(kvm, vm, index).map_err(Failure::host_cannot)?;
            let table = cpuid.for_vcpu(index).map_err(Failure::internal)?;
            vcpu.configure(&table, None).map_err(Failure::host_cannot)?;
            Ok(vcpu)
        })
        .collect()
}
