//! `SmallMachine`: the least machine of this project's own parts, in this process: RAM, irqchip, vCPUs that are about to
//! enter a guest.

use std::path::Path;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_cli::boot::{self, BootSource, E820Entry, E820Kind, Image, Platform};
use vmm_core::seam::MemorySlots;
use vmm_core::{Kvm, Vm};
use vmm_memory::{AddressSpace, RamRange};
use vmm_vcpu::Vcpu;
use vmm_vcpu::x86_64::{CpuidTemplate, VcpuState};

/// As vmm-cli has them.
const TSS: u32 = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;
const CONVENTIONAL_END: u64 = 0x9_fc00;
const EXTENDED_START: u64 = 0x10_0000;

/// As the raw baseline has it.
const RAM_SIZE: u64 = 128 << 20;

/// A machine that has been built and not run yet.
pub struct SmallMachine {
    // Dropped in this order: the memory goes after the vCPUs.
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Its memory.
    pub memory: AddressSpace,
    /// Its VM, with an irqchip.
    pub vm: Arc<Vm>,
}

impl SmallMachine {
    /// Makes a machine of `started` + `asleep` vCPUs and loads `guest`, an ELF file. The first `started` of them all begin
    /// where the first does; the others wait for INIT and SIPI.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn boot(guest: &Path, started: u32, asleep: u32) -> anyhow::Result<Self> {
        Self::boot_in(RAM_SIZE, guest, started, asleep)
    }

    /// The same with `size` bytes of RAM.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn boot_in(size: u64, guest: &Path, started: u32, asleep: u32) -> anyhow::Result<Self> {
        let kvm = Kvm::open(Path::new("/dev/kvm"))?;
        let machine = Self::empty(&kvm, size, started + asleep)?;
        let source = BootSource { kernel: Image::open(guest)?, initrd: None, cmdline: "" };
        let platform = Platform { map: &memory_map(size), rsdp: None };
        let boot = boot::load(&*machine.memory.memory(), &platform, &source)?;
        let cpuid = CpuidTemplate::new(&kvm.supported_cpuid()?, kvm.capabilities(), started + asleep);
        for vcpu in &machine.vcpus {
            let index = vcpu.index();
            vcpu.configure(&cpuid.for_vcpu(index)?, (index < started).then_some(&boot))?;
        }
        Ok(machine)
    }

    /// Makes another machine, with a copy of the memory `from`, whose vCPUs have the states `states`.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn restored(from: &AddressSpace, states: &[VcpuState]) -> anyhow::Result<Self> {
        let from = from.memory();
        let size = from.last_addr().0 + 1;
        let machine = Self::empty(&Kvm::open(Path::new("/dev/kvm"))?, size, u32::try_from(states.len())?)?;
        let (start, length) = (GuestAddress(0), usize::try_from(size)?);
        let (old, new) = (from.get_slice(start, length)?, machine.memory.memory());
        old.copy_to_volatile_slice(new.get_slice(start, length)?);
        drop(new);
        for (vcpu, state) in machine.vcpus.iter().zip(states) {
            vcpu.restore(state)?;
        }
        Ok(machine)
    }

    /// A machine with nothing in its memory and `count` vCPUs that are not configured.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn empty(kvm: &Kvm, size: u64, count: u32) -> anyhow::Result<Self> {
        let vm = Arc::new(Vm::create(kvm)?);
        vm.set_vmx_pages(TSS, IDENTITY_MAP)?;
        let memory = AddressSpace::new(Arc::clone(&vm) as Arc<dyn MemorySlots>);
        memory.map(&[RamRange { start: 0, size }])?;
        vm.create_irqchip()?;
        let vcpus = (0..count).map(|index| Vcpu::create(kvm, &vm, index));
        Ok(Self { vcpus: vcpus.collect::<Result<_, _>>()?, memory, vm })
    }

    /// The only vCPU of a machine that was made with one, and the memory.
    ///
    /// # Panics
    ///
    /// There is none.
    #[must_use]
    pub fn into_one(mut self) -> (Vcpu, AddressSpace) {
        (self.vcpus.remove(0), self.memory)
    }
}

fn memory_map(size: u64) -> [E820Entry; 3] {
    let entry = |start, end, kind| E820Entry { start, size: end - start, kind };
    [
        entry(0, CONVENTIONAL_END, E820Kind::Ram),
        entry(CONVENTIONAL_END, EXTENDED_START, E820Kind::Reserved),
        entry(EXTENDED_START, size, E820Kind::Ram),
    ]
}
