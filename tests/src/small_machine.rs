//! `SmallMachine`: the least machine of this project's own parts, in this process: RAM, irqchip, vCPUs that are about to
//! enter a guest.

use std::path::Path;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_cli::boot::{self, BootSource, E820Entry, E820Kind, Image, Platform};
use vmm_core::irq::{IrqOptions, IrqRouter, Irqchip};
use vmm_core::seam::{DirtyLog, InterruptVm, MemorySlots};
use vmm_core::{DirtyMechanism, Kvm, Vm};
use vmm_memory::{AddressSpace, Backing, DirtyTracker, RamRange};
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
    /// Its interrupt routes.
    pub router: IrqRouter,
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
        Self::empty(&kvm, size, started + asleep)?.loaded(&kvm, guest, started)
    }

    /// As [`boot`](Self::boot), with `irqchip`; `watched` may put something between the router and the VM.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn boot_with(
        guest: &Path,
        (started, asleep): (u32, u32),
        irqchip: Irqchip,
        watched: impl FnOnce(Arc<dyn InterruptVm>) -> Arc<dyn InterruptVm>,
    ) -> anyhow::Result<Self> {
        let kvm = Kvm::open(Path::new("/dev/kvm"))?;
        let machine = Self::with_irqchip(&kvm, RAM_SIZE, started + asleep, irqchip, watched)?;
        machine.loaded(&kvm, guest, started)
    }

    /// As [`boot_in`](Self::boot_in), of vCPUs that all begin, with `more` RAM besides. Writes can be tracked by `mechanism`.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn boot_tracked(
        (size, more): (u64, RamRange),
        guest: &Path,
        count: u32,
        mechanism: DirtyMechanism,
    ) -> anyhow::Result<(Self, Arc<DirtyTracker>)> {
        let kvm = Kvm::open(Path::new("/dev/kvm"))?;
        let vm = Arc::new(Vm::create(&kvm)?);
        vm.set_dirty_mechanism(mechanism)?;
        let (memory, tracker) = DirtyTracker::track(Arc::clone(&vm) as Arc<dyn DirtyLog>)?;
        memory.map(&[RamRange { start: 0, size }], &Backing::default())?;
        let machine = Self::around((vm, memory), &kvm, count, Irqchip::Kernel, |vm| vm)?;
        let machine = machine.loaded(&kvm, guest, count)?;
        machine.memory.map(&[more], &Backing::default())?;
        Ok((machine, tracker))
    }

    /// Loads `guest`, so that the first `started` vCPUs are about to run it.
    fn loaded(self, kvm: &Kvm, guest: &Path, started: u32) -> anyhow::Result<Self> {
        let source = BootSource { kernel: Image::open(guest)?, initrd: None, cmdline: "" };
        let memory = self.memory.memory();
        let platform = Platform { map: &memory_map(memory.last_addr().0 + 1), rsdp: None };
        let boot = boot::load(&*memory, &platform, &source)?;
        drop(memory);
        let count = u32::try_from(self.vcpus.len())?;
        let cpuid = CpuidTemplate::new(&kvm.supported_cpuid()?, kvm.capabilities(), count);
        for vcpu in &self.vcpus {
            let index = vcpu.index();
            vcpu.configure(&cpuid.for_vcpu(index)?, (index < started).then_some(&boot))?;
        }
        Ok(self)
    }

    /// Makes another machine, with a copy of the memory `from`, whose vCPUs have the states `states`.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn restored(from: &AddressSpace, states: &[VcpuState]) -> anyhow::Result<Self> {
        let size = from.memory().last_addr().0 + 1;
        let machine = Self::empty(&Kvm::open(Path::new("/dev/kvm"))?, size, u32::try_from(states.len())?)?;
        let (start, length) = (GuestAddress(0), usize::try_from(size)?);
        let (old, new) = (from.memory(), machine.memory.memory());
        old.get_slice(start, length)?.copy_to_volatile_slice(new.get_slice(start, length)?);
        drop((old, new));
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
        Self::with_irqchip(kvm, size, count, Irqchip::Kernel, |vm| vm)
    }

    fn with_irqchip(
        kvm: &Kvm,
        size: u64,
        count: u32,
        irqchip: Irqchip,
        watched: impl FnOnce(Arc<dyn InterruptVm>) -> Arc<dyn InterruptVm>,
    ) -> anyhow::Result<Self> {
        let vm = Arc::new(Vm::create(kvm)?);
        let memory = AddressSpace::new(Arc::clone(&vm) as Arc<dyn MemorySlots>);
        memory.map(&[RamRange { start: 0, size }], &Backing::default())?;
        Self::around((vm, memory), kvm, count, irqchip, watched)
    }

    /// What else there is around a VM and its memory.
    fn around(
        (vm, memory): (Arc<Vm>, AddressSpace),
        kvm: &Kvm,
        count: u32,
        irqchip: Irqchip,
        watched: impl FnOnce(Arc<dyn InterruptVm>) -> Arc<dyn InterruptVm>,
    ) -> anyhow::Result<Self> {
        vm.set_vmx_pages(TSS, IDENTITY_MAP)?;
        match irqchip {
            Irqchip::Kernel => vm.create_irqchip()?,
            Irqchip::Split => {
                vm.split_irqchip()?;
                vm.enable_x2apic_destinations()?;
            }
        }
        let options = IrqOptions::of_host(kvm.capabilities(), irqchip);
        let router = IrqRouter::new(watched(Arc::clone(&vm) as Arc<dyn InterruptVm>), options);
        let vcpus = (0..count).map(|index| Vcpu::create(kvm, &vm, index));
        Ok(Self { vcpus: vcpus.collect::<Result<_, _>>()?, memory, router, vm })
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

/// Lets this process have the descriptors of a thousand interrupts.
///
/// # Errors
///
/// The system call fails.
pub fn allow_many_descriptors() -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard)?)
}

fn memory_map(size: u64) -> [E820Entry; 3] {
    let entry = |start, end, kind| E820Entry { start, size: end - start, kind };
    [
        entry(0, CONVENTIONAL_END, E820Kind::Ram),
        entry(CONVENTIONAL_END, EXTENDED_START, E820Kind::Reserved),
        entry(EXTENDED_START, size, E820Kind::Ram),
    ]
}
