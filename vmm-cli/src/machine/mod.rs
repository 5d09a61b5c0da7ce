//! `Machine`: one virtual machine, from nothing to running and back to nothing.
//!
//! A [`Chassis`] has what KVM makes, through all lives of a machine; [`Machine::build`] adds the rest for one of them. It is a
//! straight line; each step is undone by `Drop`, in reverse, when a later one fails or when the machine ends. The order of
//! the fields is the order of the teardown.

pub(crate) mod calls;
mod chassis;
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
use vmm_core::seam::DoorbellFds;
use vmm_core::{Kvm, VmEvent, VmEvents};
use vmm_devices::legacy::Serial;
use vmm_devices::virtio::balloon::BalloonSettings;
use vmm_devices::virtio::console::Console as VirtioConsole;
use vmm_devices::virtio::mem::Mem;
use vmm_devices::virtio::vhost::VhostMemory;
use vmm_memory::{AddressSpace, MemoryReader};
use vmm_vcpu::x86_64::BootRegs;
use vmm_vcpu::{StopHandle, ThreadOptions, Vcpu, VcpuEnd, VcpuThread, Vcpus};

use crate::acpi;
use crate::boot::{self, BootError, BootSource, Platform};
use crate::config::{Irqchip, OnTripleFault, VmConfig};
use crate::console::{GuestPort, Outlets};
use crate::control::operations::Controlled;
use crate::disks::Disks;
use crate::memory::hotplug::Hotplug;
use crate::nets::Nets;
use crate::outcome::Failure;
use crate::processors::Processors;
use crate::stats::Report;
use crate::vhost_user::BackEnd;
use crate::vsock::Socket;
pub(crate) use chassis::{Bare, Chassis};
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
    standstill: Arc<Standstill>,
    /// Absent only when it has been taken out.
    chassis: Option<Chassis>,
}

/// Dropped, it asks every vCPU to end, and with it whoever waits for one; does not wait.
pub(crate) struct StopAtEnd(Arc<Handle>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.vcpus.request_stop();
        self.0.plugged.end();
    }
}

/// What all lives of a machine are built of.
#[derive(Clone, Copy)]
pub struct Resources<'a> {
    pub(crate) kvm: &'a Kvm,
    pub(crate) config: &'a VmConfig,
    pub(crate) source: &'a BootSource<'a>,
    pub(crate) processors: &'a Processors,
    pub(crate) outlets: &'a Outlets,
    pub(crate) disks: &'a Arc<Disks>,
    pub(crate) nets: &'a Arc<Nets>,
    pub(crate) back_ends: &'a [BackEnd],
    pub(crate) vsock: Option<&'a Socket>,
    pub(crate) hotplug: Option<&'a Hotplug>,
    /// What the host sets of the balloon, if there is one.
    pub(crate) balloon: Option<&'a Arc<BalloonSettings>>,
}

impl Machine {
    /// Builds a machine of `bare` and `resources`, and loads the images into it; events go to `events`.
    ///
    /// # Errors
    /// A [`Failure`] that says whose it is to mend; nothing of the machine is left then.
    pub(crate) fn build(bare: Bare, resources: &Resources<'_>, events: &VmEvents) -> Result<Self, Failure> {
        let &Resources { kvm, config, source, outlets, disks, nets, .. } = resources;
        let Bare { memory, dirty, router, kernel_stats, mut chassis } = bare;
        let vm = chassis.vm();
        let mut devices = Devices::new(router);
        if config.machine.irqchip == Irqchip::Split {
            devices.add_ioapic()?;
        }
        let serial = devices.add_legacy(&outlets.serial, events)?;
        if config.has_pci() {
            devices.add_pci(events)?;
        } else {
            devices.add_reset_control(events)?;
        }
        if config.selftest() {
            devices.add_selftest(kvm, vm, events)?;
        }
        let power_button = devices.add_acpi(events)?;
        let doorbells = kvm.capabilities().ioeventfd.then(|| Arc::clone(vm) as Arc<dyn DoorbellFds>);
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
        for back_end in resources.back_ends {
            devices.add_back_end(&mut virtio, back_end)?;
        }
        let virtio_console = outlets.virtio.as_ref();
        let virtio_console =
            virtio_console.map(|console| devices.add_virtio_console(&mut virtio, console)).transpose()?;
        if config.entropy.device {
            devices.add_entropy(&mut virtio)?;
        }
        let vsock = resources.vsock.map(|socket| devices.add_vsock(&mut virtio, socket)).transpose()?;
        let mem = resources.hotplug.map(|hotplug| devices.add_mem(&mut virtio, hotplug, &memory));
        let mem = mem.transpose()?;
        let balloon = devices.add_balloon(&mut virtio, config, resources.balloon)?;
        let boot = load(&memory, &virtio, config, source)?;
        let backing = Backing { disks: Arc::clone(disks), nets: Arc::clone(nets) };
        let plugged = devices.add_slots(virtio, backing, config)?;
        let Devices { exits, lines, pci, back_ends, .. } = devices;
        let exits = Arc::new(exits);
        let ends =
            Ends { events: events.clone(), memory: Arc::clone(&memory), on: config.machine.on_triple_fault };
        let vcpus = start(&mut chassis, &boot, &exits, resources.processors, &ends)?;
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
        let standstill = Arc::new(Standstill::new(&handle));
        memory.set_machine(Arc::clone(&standstill) as _);
        let chassis = Some(chassis);
        Ok(Self {
            handle,
            serial,
            virtio_console,
            _pci: pci,
            _mem: mem_last,
            _lines: lines,
            _memory: memory,
            standstill,
            chassis,
        })
    }

    /// Takes the machine apart, all but its chassis, for another life. It has been asked to stop.
    ///
    /// # Errors
    /// Somebody still has the machine, or a vCPU does not come back from its thread.
    pub(crate) fn end(mut self) -> Result<Chassis, Failure> {
        let lent = || Failure::internal(anyhow!("an ended machine is still in use"));
        let vcpus = self.own_handle().ok_or_else(lent)?.vcpus.end();
        let mut chassis = self.chassis.take().ok_or_else(lent)?;
        drop(self);
        chassis.take_back(vcpus)?;
        Ok(chassis)
    }

    /// The handle, if nobody else has it any more.
    fn own_handle(&mut self) -> Option<&mut Handle> {
        // A change of memory may have the machine in hand, to have it stand still.
        self.handle.mem.iter().for_each(|mem| mem.end());
        self.standstill.forget();
        Arc::get_mut(&mut self.handle)
    }

    /// Lets every vCPU enter the guest.
    pub fn resume(&self) {
        self.handle.vcpus.resume();
    }

    /// What asks the machine to stop when it is dropped, which has to be before the machine is.
    pub(crate) fn stop_at_end(&self) -> StopAtEnd {
        StopAtEnd(Arc::clone(&self.handle))
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
        match self.own_handle() {
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

/// Writes to guest memory what a guest finds there: the ACPI tables, the reset vector, what is booted. Returns how.
fn load(
    memory: &AddressSpace,
    virtio: &VirtioDevices,
    config: &VmConfig,
    source: &BootSource<'_>,
) -> Result<BootRegs, Failure> {
    let described =
        acpi::Described { vcpus: config.cpu.count.into(), pci: config.has_pci(), virtio: virtio.places() };
    acpi::write(&*memory.memory(), described).map_err(Failure::internal)?;
    memory
        .memory()
        .write_slice(&reset_vector::code(), GuestAddress(layout::RESET_VECTOR))
        .map_err(Failure::internal)?;
    let platform = Platform { map: &layout::e820(config.memory.size.bytes()), rsdp: Some(acpi::RSDP) };
    boot::load(&*memory.memory(), &platform, source).map_err(boot_failure)
}

/// The threads of the vCPUs, paused. The first vCPU starts as `boot` says; the others wait for INIT and SIPI.
fn start(
    chassis: &mut Chassis,
    boot: &BootRegs,
    exits: &Arc<Exits>,
    processors: &Processors,
    ends: &Ends,
) -> Result<Vcpus, Failure> {
    let (vcpus, mechanism) = (chassis.take_vcpus(), chassis.mechanism());
    if let Some(first) = vcpus.first() {
        first.start_as(boot).map_err(Failure::host_cannot)?;
    }
    let start = |vcpu: Vcpu| {
        let ends = ends.clone();
        let on_end = move |vcpu: &Vcpu, end| ends.report(vcpu, &end);
        let options =
            ThreadOptions { mechanism, placement: processors.placement(vcpu.index()), kind: &calls::VCPU };
        VcpuThread::spawn(vcpu, Arc::clone(exits), options, on_end)
    };
    let threads: Result<Vec<_>, _> = vcpus.into_iter().map(start).collect();
    Ok(Vcpus::new(threads.map_err(Failure::host_cannot)?))
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
