//! `Machine`: one virtual machine, from nothing to running and back to nothing.
//!
//! [`Machine::build`] is a straight line; each step is undone by `Drop`, in reverse, when a later one fails or when
//! the machine ends. The order of the fields is the order of the teardown.

pub(crate) mod calls;
mod devices;
mod exits;
mod handle;
mod irqchip;
pub(crate) mod layout;
mod pci;
mod plugged;
mod power;
mod report;
mod reset_vector;
mod standstill;
pub(crate) mod virtio;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::anyhow;
use vm_memory::{Bytes, GuestAddress};
use vmm_core::irq::IrqLine;
use vmm_core::seam::{DirtyLog, DoorbellFds};
use vmm_core::{Kvm, Vm, VmEvent, VmEvents};
use vmm_devices::legacy::Serial;
use vmm_devices::virtio::balloon::BalloonSettings;
use vmm_devices::virtio::console::Console as VirtioConsole;
use vmm_devices::virtio::mem::Mem;
use vmm_devices::virtio::vhost::VhostMemory;
use vmm_memory::{AddressSpace, DirtyTracker, MemoryReader};
use vmm_vcpu::x86_64::{BootRegs, CpuidTemplate};
use vmm_vcpu::{Mechanism, StopHandle, ThreadOptions, Vcpu, VcpuEnd, VcpuThread, Vcpus};

use crate::acpi;
use crate::boot::{self, BootError, BootSource, Platform};
use crate::config::{Irqchip, Kick, OnTripleFault, VmConfig};
use crate::console::{Consoles, GuestPort};
use crate::control::operations::Controlled;
use crate::disks::Disks;
use crate::memory::hotplug::{self, Hotplug};
use crate::memory::{Ram, dirty_mechanism};
use crate::nets::Nets;
use crate::outcome::Failure;
use crate::processors::Processors;
use crate::stats::{KernelStats, Report};
use crate::vhost_user::BackEnd;
use crate::vsock::Socket;
use devices::Devices;
use exits::Exits;
use handle::Handle;
use pci::Pci;
use plugged::Backing;
pub use power::PowerButton;
use standstill::Standstill;
use virtio::VirtioDevices;

/// A machine that has been built: its vCPUs wait to be resumed. Dropped, it is taken apart.
pub struct Machine {
    /// The vCPUs, and what else others may reach: nobody has it any more when the machine is dropped.
    handle: Arc<Handle>,
    /// The guest's serial port, for the one who feeds it input.
    serial: Arc<Serial>,
    /// The same of its virtio console, if there is one.
    virtio_console: Option<Arc<VirtioConsole>>,
    _pci: Option<Pci>,
    /// The device with the memory that is plugged, after those that may have requests in flight there.
    _mem: Option<Arc<Mem>>,
    _lines: Vec<IrqLine>,
    _memory: Arc<AddressSpace>,
}

/// What a machine gets of the host.
pub struct Resources<'a> {
    pub(crate) processors: &'a Processors,
    pub(crate) ram: Ram,
    pub(crate) disks: &'a Arc<Disks>,
    pub(crate) nets: &'a Arc<Nets>,
    pub(crate) back_ends: &'a [BackEnd],
    pub(crate) vsock: Option<&'a Socket>,
    pub(crate) hotplug: Option<&'a Hotplug>,
    /// What the host sets of the balloon, if there is one.
    pub(crate) balloon: Option<&'a Arc<BalloonSettings>>,
}

impl Machine {
    /// Builds the machine of `config` on `resources` and loads `source` into it; events go to `events`, output to `consoles`.
    ///
    /// # Errors
    /// A [`Failure`] that says whose it is to mend; nothing of the machine is left then.
    pub fn build(
        kvm: &Kvm,
        config: &VmConfig,
        resources: Resources<'_>,
        source: &BootSource<'_>,
        consoles: &Consoles,
        events: &VmEvents,
    ) -> Result<Self, Failure> {
        let Resources { processors, ram, disks, nets, back_ends, vsock, hotplug, balloon } = resources;
        let mut cpuid = cpuid(kvm, config)?;
        processors.describe(&mut cpuid);
        let vm = Arc::new(Vm::create(kvm).map_err(Failure::host_cannot)?);
        processors.set_up(&vm).map_err(Failure::host_cannot)?;
        vm.set_vmx_pages(layout::TSS, layout::IDENTITY_MAP).map_err(Failure::host_cannot)?;
        // All slots before irqchip and doorbells: the first slot change after a change of the I/O bus waits for a
        // grace period of the kernel.
        vm.set_dirty_mechanism(dirty_mechanism(kvm, &config.memory)?).map_err(Failure::host_cannot)?;
        let (memory, dirty) =
            DirtyTracker::track(Arc::clone(&vm) as Arc<dyn DirtyLog>).map_err(Failure::internal)?;
        let memory = Arc::new(memory.with_address_bits(cpuid.physical_address_bits()));
        let size = config.memory.size.bytes();
        memory.place(ram).map_err(Failure::host_cannot)?;
        let mut devices = Devices::new(irqchip::create(kvm, &vm, config)?);
        if config.machine.irqchip == Irqchip::Split {
            devices.add_ioapic()?;
        }
        let serial = devices.add_legacy(&consoles.serial, events)?;
        if config.has_pci() {
            devices.add_pci(events)?;
        } else {
            devices.add_reset_control(events)?;
        }
        if config.selftest() {
            devices.add_selftest(kvm, &vm, events)?;
        }
        let power_button = devices.add_acpi(events)?;
        let doorbells = kvm.capabilities().ioeventfd.then(|| Arc::clone(&vm) as Arc<dyn DoorbellFds>);
        let vhost = VhostMemory::new();
        memory.add_observer(Arc::clone(&vhost) as _).map_err(Failure::internal)?;
        let reader = MemoryReader::new(Arc::clone(&memory));
        let mut virtio = VirtioDevices::new(reader, vhost, doorbells, events.clone());
        for disk in disks.of_next_life() {
            devices.add_disk(&mut virtio, disk)?;
        }
        for nic in nets.of_next_life() {
            devices.add_net(&mut virtio, nic)?;
        }
        for back_end in back_ends {
            devices.add_back_end(&mut virtio, back_end)?;
        }
        let virtio_console = consoles.virtio.as_ref();
        let virtio_console =
            virtio_console.map(|console| devices.add_virtio_console(&mut virtio, console)).transpose()?;
        if config.entropy.device {
            devices.add_entropy(&mut virtio)?;
        }
        let vsock = vsock.map(|socket| devices.add_vsock(&mut virtio, socket)).transpose()?;
        let mem = hotplug.map(|hotplug| devices.add_mem(&mut virtio, hotplug, &memory)).transpose()?;
        let balloon = devices.add_balloon(&mut virtio, config, balloon)?;
        let described = acpi::Described {
            vcpus: config.cpu.count.into(),
            pci: config.has_pci(),
            virtio: virtio.places(),
        };
        acpi::write(&*memory.memory(), described).map_err(Failure::internal)?;
        let backing = Backing { disks: Arc::clone(disks), nets: Arc::clone(nets) };
        let plugged = devices.add_slots(virtio, backing, config)?;
        memory
            .memory()
            .write_slice(&reset_vector::code(), GuestAddress(layout::RESET_VECTOR))
            .map_err(Failure::internal)?;
        let platform = Platform { map: &layout::e820(size), rsdp: Some(acpi::RSDP) };
        let boot = boot::load(&*memory.memory(), &platform, source).map_err(boot_failure)?;
        let Devices { exits, lines, pci, back_ends, .. } = devices;
        let exits = Arc::new(exits);
        let vcpus = configured_vcpus(kvm, &vm, &cpuid, &boot)?;
        let kernel_stats = kernel_stats(kvm, config, &vm, &vcpus)?;
        let ends =
            Ends { events: events.clone(), memory: Arc::clone(&memory), on: config.machine.on_triple_fault };
        let vcpus = start(vcpus, &exits, mechanism(kvm, config.cpu.kick), processors, &ends)?;
        // A vCPU that asks for the end of the machine executes nothing after it.
        let stops = vcpus.stop_handles();
        events.on_first(move || stops.iter().for_each(StopHandle::request_stop));
        let (events, dirty, mem_last) = (events.clone(), dirty.into(), mem.clone());
        let handle = Handle {
            vcpus,
            kernel_stats,
            power_button,
            plugged,
            back_ends,
            vsock,
            mem,
            balloon,
            exits,
            events,
            dirty,
        };
        let handle = Arc::new(handle);
        memory.set_machine(Arc::new(Standstill(Arc::downgrade(&handle))));
        Ok(Self { handle, serial, virtio_console, _pci: pci, _mem: mem_last, _lines: lines, _memory: memory })
    }

    /// Lets every vCPU enter the guest.
    pub fn resume(&self) {
        self.handle.vcpus.resume();
    }

    /// Asks every vCPU to end, and with it whoever waits for one; does not wait.
    pub fn request_stop(&self) {
        self.handle.vcpus.request_stop();
        self.handle.plugged.end();
    }

    /// The machine as it is controlled from outside. Whoever has it gives it back before the machine is dropped.
    #[must_use]
    pub fn handle(&self) -> Arc<dyn Controlled> {
        Arc::clone(&self.handle) as _
    }

    /// Ends the vCPUs and returns all that has been counted.
    #[must_use]
    pub fn final_report(&self) -> Report {
        let vcpus = &self.handle.vcpus;
        vcpus.request_stop();
        for index in 0..vcpus.counters().len() as u32 {
            // The answer of one that was asked to stop, whichever it is, says that nothing of it will run any more.
            let _ = vcpus.perform(index, |_| ());
        }
        self.handle.report()
    }

    /// The guest's power button.
    #[must_use]
    pub fn power_button(&self) -> &PowerButton {
        &self.handle.power_button
    }

    /// The guest's ports that have a console on the host, in the order of [`Consoles::iter`].
    pub(crate) fn ports(&self) -> Vec<&dyn GuestPort> {
        let virtio = self.virtio_console.as_ref().map(|console| &**console as &dyn GuestPort);
        std::iter::once(&*self.serial as &dyn GuestPort).chain(virtio).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A change of memory may have the machine in hand, to have it stand still.
        self.handle.mem.iter().for_each(|mem| mem.end());
        match Arc::get_mut(&mut self.handle) {
            Some(handle) => handle.vcpus.stop(),
            // Whoever has it still joins them.
            None => self.handle.vcpus.request_stop(),
        }
        let (ports, mmio) = (self.handle.exits.pio.unclaimed(), self.handle.exits.mmio.unclaimed());
        if ports + mmio != 0 {
            tracing::debug!(ports, mmio, "accesses to addresses without a device");
        }
    }
}

/// A boot image that does not fit is the user's to mend, guest memory that is not there is ours.
fn boot_failure(error: BootError) -> Failure {
    match error {
        BootError::Memory { .. } => Failure::internal(error),
        _ => Failure::bad_input(error),
    }
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

/// The threads of `vcpus`, paused.
fn start(
    vcpus: Vec<Vcpu>,
    exits: &Arc<Exits>,
    mechanism: Mechanism,
    processors: &Processors,
    ends: &Ends,
) -> Result<Vcpus, Failure> {
    let start = |vcpu: Vcpu| {
        let ends = ends.clone();
        let on_end = move |vcpu: &Vcpu, end| ends.report(vcpu, &end);
        let options = ThreadOptions { mechanism, placement: processors.placement(vcpu.index()), kind: &calls::VCPU };
        VcpuThread::spawn(vcpu, Arc::clone(exits), options, on_end)
    };
    let threads: Result<Vec<_>, _> = vcpus.into_iter().map(start).collect();
    Ok(Vcpus::new(threads.map_err(Failure::host_cannot)?))
}

/// Makes the vCPUs, the first of which starts as `boot` says; the others wait for INIT and SIPI.
fn configured_vcpus(
    kvm: &Kvm,
    vm: &Vm,
    cpuid: &CpuidTemplate,
    boot: &BootRegs,
) -> Result<Vec<Vcpu>, Failure> {
    (0..cpuid.vcpus())
        .map(|index| {
            let vcpu = Vcpu::create(kvm, vm, index).map_err(Failure::host_cannot)?;
            let table = cpuid.for_vcpu(index).map_err(Failure::internal)?;
            vcpu.configure(&table, (index == 0).then_some(boot)).map_err(Failure::host_cannot)?;
            Ok(vcpu)
        })
        .collect()
}

/// Opens what the kernel counts, if that is wanted and there.
fn kernel_stats(
    kvm: &Kvm,
    config: &VmConfig,
    vm: &Vm,
    vcpus: &[Vcpu],
) -> Result<Option<KernelStats>, Failure> {
    let wanted = config.keeps_kernel_stats() && kvm.capabilities().binary_stats;
    wanted.then(|| KernelStats::open(vm, vcpus)).transpose().map_err(Failure::host_cannot)
}

/// What the end of a vCPU means for the machine.
#[derive(Clone)]
struct Ends {
    events: VmEvents,
    memory: Arc<AddressSpace>,
    on: OnTripleFault,
}

impl Ends {
    /// Called on the vCPU's thread, when it no longer runs. Sends an event whatever happens: without one the machine
    /// would go on without this vCPU.
    fn report(&self, vcpu: &Vcpu, end: &VcpuEnd) {
        let event = catch_unwind(AssertUnwindSafe(|| self.event(vcpu, end)));
        let failed =
            |_| Some(VmEvent::Internal(format!("vCPU {} ended, and its report panicked", vcpu.index())));
        if let Some(event) = event.unwrap_or_else(failed) {
            self.events.send(event);
        }
    }

    fn event(&self, vcpu: &Vcpu, end: &VcpuEnd) -> Option<VmEvent> {
        Some(match end {
            VcpuEnd::Stopped => return None,
            VcpuEnd::TripleFault if self.on == OnTripleFault::Reset => VmEvent::Reset("triple fault"),
            VcpuEnd::TripleFault
            | VcpuEnd::FailEntry { .. }
            | VcpuEnd::InternalError { .. }
            | VcpuEnd::UnexpectedExit(_) => VmEvent::GuestCrash(report::report(vcpu, end, &self.memory)),
            VcpuEnd::RunFailed(_) | VcpuEnd::Panicked(_) => {
                VmEvent::Internal(report::report(vcpu, end, &self.memory))
            }
        })
    }
}
