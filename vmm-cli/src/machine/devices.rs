//! `Devices`: what sits on the buses of a machine that is being built.

use std::sync::{Arc, Mutex};

use vmm_core::irq::{IrqLine, IrqRouter, IrqTrigger, TriggeredBy};
use vmm_core::seam::DoorbellFds;
use vmm_core::{Kvm, Vm, VmEvents};
use vmm_devices::acpi::{GenericEvents, HotplugSlots, PowerControl};
use vmm_devices::legacy::{
    Cmos, DebugConsole, DebugExit, Flash, I8042, I8042Data, Ioapic, ResetControl, Serial,
};
use vmm_devices::pci::{ConfigurationAddress, ConfigurationData, ConfigurationPorts, Ecam, PciAddress};
use vmm_devices::selftest::{self, Placement, Selftest, SelftestPorts};
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::balloon::{Balloon, BalloonSettings};
use vmm_devices::virtio::console::Console as VirtioConsole;
use vmm_devices::virtio::mem::Mem;
use vmm_devices::virtio::rng::Rng;
use vmm_devices::virtio::transport::VirtioMmio;
use vmm_devices::virtio::vhost_user::VhostUser;
use vmm_devices::{BusDevice, Pvpanic};
use vmm_memory::AddressSpace;

use super::exits::Exits;
use super::layout::{
    COM1, EVENTS_LINE, EVENTS_PORT, FLASH, HOTPLUG_PORTS, PCI_ECAM, POWER_PORTS, PVPANIC_BASE, SELFTEST_BASE,
    SELFTEST_LINE, SELFTEST_PORTS, SERIAL_LINE,
};
use super::pci::Pci;
use super::plugged::{Backing, Behind, DISK, Device, NET, Parts, Plugged, PluggedDisk, PluggedNet};
use super::power::PowerButton;
use super::virtio::VirtioDevices;
use crate::balloon;
use crate::config::{DeviceId, VmConfig, device_id};
use crate::console::Outlet;
use crate::disks::Disk;
use crate::kept::Named;
use crate::memory::hotplug::Hotplug;
use crate::nets::Nic;
use crate::outcome::Failure;
use crate::vhost_user::BackEnd;
use crate::vsock::{Socket, SocketDevice, SocketPart};

/// Ports, as on a PC.
const I8042_DATA_PORT: u64 = 0x60;
const I8042_COMMAND_PORT: u64 = 0x64;
const CMOS_PORTS: (u64, u64) = (0x70, 2);
const DEBUG_CONSOLE_PORT: u64 = 0xe9;
const DEBUG_EXIT_PORTS: (u64, u64) = (0xf4, 4);

/// What the entropy device, the virtio console, the socket device, the memory device and the balloon are to a driver.
const RNG: &str = "virtio-rng";
const CONSOLE: &str = "virtio-console";
const VSOCK: &str = "virtio-vsock";
const MEM: &str = "virtio-mem";
const BALLOON: &str = "virtio-balloon";

/// Buses and interrupt lines while they are filled.
pub(super) struct Devices {
    pub(super) exits: Exits,
    pub(super) lines: Vec<IrqLine>,
    pub(super) pci: Option<Pci>,
    /// Those that serve devices, with what these are called.
    pub(super) back_ends: Vec<(DeviceId, Arc<VhostUser>)>,
    router: IrqRouter,
    /// Until the slots have it.
    generic: Option<Arc<GenericEvents>>,
    plugged: Vec<Device>,
}

impl Devices {
    /// Empty buses; lines come from `router`.
    pub(super) fn new(router: IrqRouter) -> Self {
        let (lines, back_ends, plugged) = (Vec::new(), Vec::new(), Vec::new());
        Self { exits: Exits::new(), lines, pci: None, back_ends, router, generic: None, plugged }
    }

    /// Adds the I/O APIC of a machine whose KVM has none.
    pub(super) fn add_ioapic(&mut self) -> Result<(), Failure> {
        let pins = self.router.ioapic_pins();
        self.exits.ioapic = Some(pins.clone());
        self.mmio((Ioapic::ADDRESS, Ioapic::LENGTH), "ioapic", Arc::new(Ioapic::new(pins)))
    }

    /// Adds what every machine has; returns its serial port.
    pub(super) fn add_legacy(&mut self, console: &Outlet, events: &VmEvents) -> Result<Arc<Serial>, Failure> {
        let interrupt = self.line(SERIAL_LINE, "serial")?;
        let serial = Arc::new(Serial::new(interrupt, console.output(), console.on_drained()));
        self.port((COM1.into(), Serial::PORTS), "serial", Arc::clone(&serial) as Arc<dyn BusDevice>)?;
        self.port((I8042_DATA_PORT, 1), "i8042 data", Arc::new(I8042Data))?;
        self.port((I8042_COMMAND_PORT, 1), "i8042 command", Arc::new(I8042::new(events.clone())))?;
        self.port(CMOS_PORTS, "cmos", Arc::new(Mutex::new(Cmos::default())))?;
        self.port((DEBUG_CONSOLE_PORT, 1), "debug console", Arc::new(DebugConsole::new(console.output())))?;
        self.port(DEBUG_EXIT_PORTS, "debug exit", Arc::new(DebugExit::new(events.clone())))?;
        self.mmio(FLASH, "flash", Arc::new(Flash))?;
        Ok(serial)
    }

    /// Adds the reset control register, alone.
    pub(super) fn add_reset_control(&mut self, events: &VmEvents) -> Result<(), Failure> {
        self.port(ResetControl::PORTS, "reset control", Arc::new(ResetControl::new(events.clone())))
    }

    /// Adds a PCI bus, whose address register has the reset control register beneath it.
    pub(super) fn add_pci(&mut self, events: &VmEvents) -> Result<(), Failure> {
        let pci = Pci::new(&self.exits.mmio, events)?;
        let ports = ConfigurationPorts::new(Arc::clone(pci.root()));
        let address = ConfigurationAddress::new(Arc::clone(&ports), ResetControl::new(events.clone()));
        self.port(ConfigurationAddress::PORTS, "pci address", Arc::new(address))?;
        self.port(ConfigurationData::PORTS, "pci data", Arc::new(ConfigurationData::new(ports)))?;
        let ecam = Arc::new(Ecam::new(Arc::clone(pci.root())));
        self.mmio((PCI_ECAM.into(), Ecam::LENGTH), "pci ecam", ecam)?;
        self.pci = Some(pci);
        Ok(())
    }

    /// Adds the devices that the ACPI tables describe beside the serial port and the slots; returns the power button.
    pub(super) fn add_acpi(&mut self, events: &VmEvents) -> Result<PowerButton, Failure> {
        let power = Arc::new(PowerControl::new(events.clone()));
        self.port((POWER_PORTS.into(), PowerControl::LENGTH), "acpi power", power)?;
        let generic = Arc::new(GenericEvents::new(self.line(EVENTS_LINE, "acpi events")?));
        self.port((EVENTS_PORT.into(), GenericEvents::LENGTH), "acpi events", Arc::clone(&generic) as _)?;
        self.generic = Some(Arc::clone(&generic));
        let pvpanic = Arc::new(Pvpanic::new(events.clone()));
        self.mmio((PVPANIC_BASE.into(), Pvpanic::LENGTH), "pvpanic", pvpanic)?;
        Ok(PowerButton::new(generic, self.router.clone(), EVENTS_LINE))
    }

    /// Adds the self-test device.
    pub(super) fn add_selftest(&mut self, kvm: &Kvm, vm: &Arc<Vm>, events: &VmEvents) -> Result<(), Failure> {
        let trigger = self.line(SELFTEST_LINE, "selftest")?;
        let placement = Placement { base: SELFTEST_BASE, ports: SELFTEST_PORTS, line: SELFTEST_LINE };
        let doorbells = kvm.capabilities().ioeventfd.then(|| Arc::clone(vm) as Arc<dyn DoorbellFds>);
        let device = Selftest::new(placement, trigger, doorbells, events).map_err(Failure::host_cannot)?;
        self.mmio((SELFTEST_BASE, selftest::MMIO_LENGTH), "selftest", Arc::new(device))?;
        let ports = (u64::from(SELFTEST_PORTS), selftest::PORTS);
        self.port(ports, "selftest ports", Arc::new(SelftestPorts::default()))
    }

    /// Adds the entropy device.
    pub(super) fn add_entropy(&mut self, virtio: &mut VirtioDevices) -> Result<(), Failure> {
        let device = Rng::new(virtio.worker()?);
        self.add_virtio(virtio, (device_id::ENTROPY, RNG), Arc::new(device), None)
    }

    /// Adds the virtio console, whose other end `console` is.
    pub(super) fn add_virtio_console(
        &mut self,
        virtio: &mut VirtioDevices,
        console: &Outlet,
    ) -> Result<Arc<VirtioConsole>, Failure> {
        let device = VirtioConsole::new(virtio.worker()?, console.output(), console.on_drained());
        let device = Arc::new(device);
        self.add_virtio(virtio, (device_id::CONSOLE, CONSOLE), Arc::clone(&device) as _, None)?;
        Ok(device)
    }

    /// Adds the socket device, whose other end `socket` is.
    pub(super) fn add_vsock(
        &mut self,
        virtio: &mut VirtioDevices,
        socket: &Socket,
    ) -> Result<SocketPart, Failure> {
        let device = socket.device(&virtio.events, &virtio.vhost)?;
        let (device, by, own): (Arc<dyn VirtioDevice>, _, _) = match device {
            SocketDevice::Own(device) => (Arc::clone(&device) as _, TriggeredBy::UserSpace, Some(device)),
            SocketDevice::Kernel(device) => (device, TriggeredBy::Kernel, None),
        };
        let address = self.place_virtio(virtio, (VSOCK, by), device)?;
        self.plugged.push(Device::new(device_id::VSOCK.to_owned(), VSOCK, address, None));
        Ok(socket.part(own))
    }

    /// Adds the memory device, which plugs what `hotplug` says in `space`.
    pub(super) fn add_mem(
        &mut self,
        virtio: &mut VirtioDevices,
        hotplug: &Hotplug,
        space: &Arc<AddressSpace>,
    ) -> Result<Arc<Mem>, Failure> {
        let device = Arc::new(hotplug.device(space, &virtio.events)?);
        self.add_virtio(virtio, (device_id::MEMORY, MEM), Arc::clone(&device) as _, None)?;
        Ok(device)
    }

    /// Adds the balloon, which is to be as `settings` say, if there is to be one.
    pub(super) fn add_balloon(
        &mut self,
        virtio: &mut VirtioDevices,
        config: &VmConfig,
        settings: Option<&Arc<BalloonSettings>>,
    ) -> Result<Option<Arc<Balloon>>, Failure> {
        let Some(settings) = settings else { return Ok(None) };
        let device = Arc::new(balloon::device(config, settings, &virtio.memory, &virtio.events)?);
        self.add_virtio(virtio, (device_id::BALLOON, BALLOON), Arc::clone(&device) as _, None)?;
        Ok(Some(device))
    }

    /// Adds a disk.
    pub(super) fn add_disk(&mut self, virtio: &mut VirtioDevices, disk: Arc<Disk>) -> Result<(), Failure> {
        let block = Arc::new(disk.device(&virtio.events)?);
        let (device, id) = (Arc::clone(&block) as _, disk.id().to_string());
        self.add_virtio(virtio, (&id, DISK), device, Some(Behind::Disk(PluggedDisk { disk, block })))
    }

    /// Adds a network device.
    pub(super) fn add_net(&mut self, virtio: &mut VirtioDevices, nic: Arc<Nic>) -> Result<(), Failure> {
        let net = Arc::new(nic.device(&virtio.events, &virtio.vhost)?);
        let address = self.place_virtio(virtio, (NET, nic.triggered_by()), Arc::clone(&net) as _)?;
        let (id, behind) = (nic.id().to_string(), Behind::Net(PluggedNet { nic, net }));
        self.plugged.push(Device::new(id, NET, address, Some(behind)));
        Ok(())
    }

    /// Adds the device that a vhost-user back end serves.
    pub(super) fn add_back_end(
        &mut self,
        virtio: &mut VirtioDevices,
        back_end: &BackEnd,
    ) -> Result<(), Failure> {
        let device = Arc::new(back_end.device(&virtio.events, &virtio.vhost)?);
        let (id, name) = (back_end.id(), back_end.name());
        let address = self.place_virtio(virtio, (name, TriggeredBy::Kernel), device)?;
        self.plugged.push(Device::new(id.to_string(), name, address, None));
        self.back_ends.push((id.clone(), back_end.user()));
        Ok(())
    }

    /// Adds what lets devices come and go, after those that are there from the beginning; `virtio` is for those to come.
    pub(super) fn add_slots(
        &mut self,
        virtio: VirtioDevices,
        backing: Backing,
        config: &VmConfig,
    ) -> Result<Arc<Plugged>, Failure> {
        let parts = self.pci.as_ref().zip(self.generic.take()).map(|(pci, events)| Parts {
            root: Arc::clone(pci.root()),
            host: pci.host().clone(),
            router: self.router.clone(),
            virtio,
            events,
            config: config.clone(),
        });
        let plugged = Plugged::new(std::mem::take(&mut self.plugged), backing, parts);
        if let Some(registers) = plugged.registers() {
            let ports = (u64::from(HOTPLUG_PORTS), HotplugSlots::LENGTH);
            self.port(ports, "acpi slots", Arc::clone(registers) as _)?;
        }
        Ok(plugged)
    }

    /// Adds a virtio device with its id, and what it is to a driver.
    fn add_virtio(
        &mut self,
        virtio: &mut VirtioDevices,
        (id, name): (&str, &'static str),
        device: Arc<dyn VirtioDevice>,
        behind: Option<Behind>,
    ) -> Result<(), Failure> {
        let address = self.place_virtio(virtio, (name, TriggeredBy::UserSpace), device)?;
        self.plugged.push(Device::new(id.to_owned(), name, address, behind));
        Ok(())
    }

    /// Puts a virtio device on the PCI bus, at the address that is returned, or where there is none, in MMIO space, where whoever serves
    /// it interrupts through the device.
    fn place_virtio(
        &mut self,
        virtio: &mut VirtioDevices,
        (name, by): (&'static str, TriggeredBy),
        device: Arc<dyn VirtioDevice>,
    ) -> Result<Option<PciAddress>, Failure> {
        if let Some(pci) = &self.pci {
            return pci.insert(virtio.function((name, by), device, pci.host(), &self.router)?).map(Some);
        }
        let place = virtio.take_place()?;
        let trigger = self.line(place.line, name)?;
        let device = virtio.make(name, device, place, trigger)?;
        self.mmio((place.base, VirtioMmio::LENGTH), name, Arc::new(device))?;
        Ok(None)
    }

    fn line(&mut self, gsi: u32, owner: &'static str) -> Result<IrqTrigger, Failure> {
        let line = self.router.edge_line(gsi, owner).map_err(Failure::host_cannot)?;
        let trigger = line.trigger();
        self.lines.push(line);
        Ok(trigger)
    }

    fn port(
        &mut self,
        (start, length): (u64, u64),
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Failure> {
        self.exits.pio.insert(start, length, name, device).map_err(Failure::internal)
    }

    fn mmio(
        &mut self,
        (start, length): (u64, u64),
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Failure> {
        self.exits.mmio.insert(start, length, name, device).map_err(Failure::internal)
    }
}
