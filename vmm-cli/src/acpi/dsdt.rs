//! The DSDT: the devices of the machine, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, MethodCall, Name, Notify, ONE, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Scope, Store, ZERO,
};
use vmm_devices::Pvpanic;
use vmm_devices::acpi::{GenericEvents, PCI_HOTPLUG, POWER_BUTTON, SOFT_OFF};
use vmm_devices::legacy::Serial;
use vmm_devices::virtio::transport::VirtioMmio;

use super::{Described, pci, table, to_bytes};
use crate::machine::layout::{COM1, EVENTS_LINE, EVENTS_PORT, PVPANIC_BASE, SERIAL_LINE};
use crate::machine::virtio::MmioPlace;

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;

/// The value with which a power button that was pressed is notified (section 4.8.3.1.2.2).
const BUTTON_PRESSED: u8 = 0x80;

/// The table of a machine.
pub(super) fn dsdt(machine: Described<'_>) -> Vec<u8> {
    let mut body = soft_off();
    let mut devices = Vec::new();
    for index in 0..machine.vcpus {
        devices.extend(processor(index));
    }
    for device in [serial(), power_button(), generic_events(machine.pci), pvpanic()] {
        devices.extend(device);
    }
    if machine.pci {
        devices.extend(pci::host_bridge());
        devices.extend(pci::motherboard());
    }
    for (index, place) in machine.virtio.iter().enumerate() {
        devices.extend(virtio_mmio(index, *place));
    }
    body.extend(Scope::raw(Path::new("_SB_"), devices));
    table(*b"DSDT", REVISION, &body)
}

/// `\_S5`: what to write into the sleep control register to turn the machine off.
fn soft_off() -> Vec<u8> {
    to_bytes(&Name::new(Path::new("_S5_"), &Package::new(vec![&SOFT_OFF, &ZERO, &ZERO, &ZERO])))
}

/// A processor; its `_UID` is that of the MADT.
fn processor(index: u32) -> Vec<u8> {
    to_bytes(&Device::new(
        Path::new(&format!("C{index:03X}")),
        vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &index)],
    ))
}

/// An edge-triggered, active-high interrupt of one device.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// The first serial port.
fn serial() -> Vec<u8> {
    let ports = IO::new(COM1, COM1, 1, Serial::PORTS as u8);
    to_bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt(SERIAL_LINE), &ports])),
        ],
    ))
}

/// The power button, which the generic event device notifies.
fn power_button() -> Vec<u8> {
    to_bytes(&Device::new(
        Path::new("PWRB"),
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")), &Name::new(Path::new("_UID"), &ZERO)],
    ))
}

/// The generic event device (section 5.6.9): its method reads which events there are.
fn generic_events(pci: bool) -> Vec<u8> {
    let (events, event) = (Local(0), Local(1));
    let (register, button) = (Path::new("EVNT"), Path::new("\\_SB_.PWRB"));
    let read = Store::new(&events, &register);
    let is_pressed = And::new(&event, &events, &POWER_BUTTON);
    let press = Notify::new(&button, &BUTTON_PRESSED);
    let pressed = If::new(&event, vec![&press]);
    let is_plugged = And::new(&event, &events, &PCI_HOTPLUG);
    let notify_slots = MethodCall::new(Path::new("\\_SB_.PCI0.PCNT"), vec![]);
    let plugged = If::new(&event, vec![&notify_slots]);
    let mut steps: Vec<&dyn Aml> = vec![&read, &is_pressed, &pressed];
    if pci {
        steps.extend([&is_plugged as &dyn Aml, &plugged]);
    }
    to_bytes(&Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt(EVENTS_LINE)])),
            &OpRegion::new(Path::new("EVTR"), OpRegionSpace::SystemIO, &EVENTS_PORT, &ONE),
            &Field::new(
                Path::new("EVTR"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVNT", 8 * GenericEvents::LENGTH as usize)],
            ),
            &Method::new(Path::new("_EVT"), 1, true, steps),
        ],
    ))
}

/// The panic device.
fn pvpanic() -> Vec<u8> {
    let registers = Memory32Fixed::new(true, PVPANIC_BASE, Pvpanic::LENGTH as u32);
    to_bytes(&Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers])),
        ],
    ))
}

/// A virtio device in MMIO space. Its accesses to memory are coherent, as all are here.
fn virtio_mmio(index: usize, place: MmioPlace) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, place.base as u32, VirtioMmio::LENGTH as u32);
    let interrupt = interrupt(place.line);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    to_bytes(&Device::new(
        Path::new(&format!("V{index:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}
