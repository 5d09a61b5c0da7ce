//! `SmallMachine`: the least machine of this project's own parts, in this process: RAM, irqchip, one vCPU that is about
//! to enter a guest.

use std::path::Path;
use std::sync::Arc;

use vmm_cli::boot::{self, BootSource, E820Entry, E820Kind, Image, Platform};
use vmm_core::seam::MemorySlots;
use vmm_core::{Kvm, Vm};
use vmm_memory::{AddressSpace, RamRange};
use vmm_vcpu::Vcpu;
use vmm_vcpu::x86_64::CpuidTemplate;

/// As vmm-cli has them.
const TSS: u32 = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;
const CONVENTIONAL_END: u64 = 0x9_fc00;
const EXTENDED_START: u64 = 0x10_0000;

/// As the raw baseline has it.
const RAM_SIZE: u64 = 128 << 20;

/// A machine that has been built and not run yet.
pub struct SmallMachine {
    // Dropped in this order: the memory goes after the vCPU.
    /// Its vCPU.
    pub vcpu: Vcpu,
    /// Its memory.
    pub memory: AddressSpace,
    /// Its VM, with an irqchip.
    pub vm: Arc<Vm>,
}

impl SmallMachine {
    /// Makes a machine and loads `guest`, an ELF file.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn boot(guest: &Path) -> anyhow::Result<Self> {
        let kvm = Kvm::open(Path::new("/dev/kvm"))?;
        let vm = Arc::new(Vm::create(&kvm)?);
        vm.set_vmx_pages(TSS, IDENTITY_MAP)?;
        let memory = AddressSpace::new(Arc::clone(&vm) as Arc<dyn MemorySlots>);
        memory.map(&[RamRange { start: 0, size: RAM_SIZE }])?;
        vm.create_irqchip()?;
        let source = BootSource { kernel: Image::open(guest)?, initrd: None, cmdline: "" };
        let platform = Platform { map: &memory_map(), rsdp: None };
        let boot = boot::load(&*memory.memory(), &platform, &source)?;
        let cpuid = CpuidTemplate::new(&kvm.supported_cpuid()?, kvm.capabilities(), 1);
        let vcpu = Vcpu::create(&kvm, &vm, 0)?;
        vcpu.configure(&cpuid.for_vcpu(0)?, Some(&boot))?;
        Ok(Self { vcpu, memory, vm })
    }
}

fn memory_map() -> [E820Entry; 3] {
    let entry = |start, end, kind| E820Entry { start, size: end - start, kind };
    [
        entry(0, CONVENTIONAL_END, E820Kind::Ram),
        entry(CONVENTIONAL_END, EXTENDED_START, E820Kind::Reserved),
        entry(EXTENDED_START, RAM_SIZE, E820Kind::Ram),
    ]
}
