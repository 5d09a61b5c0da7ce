//! What the tables say of PCI: the host bridge in AML, and the MCFG.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, CreateDWordField, Device, EISAName, Equal, IO, If,
    Memory32Fixed, Method, Name, Or, Path, ResourceTemplate, Return, Store, Uuid, ZERO,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, AmlSink};
use vmm_devices::pci::{ConfigurationAddress, Ecam};

use super::slots::Slots;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, to_bytes};
use crate::machine::layout::{PCI_BARS, PCI_ECAM};

/// The one bus of the one segment.
const SEGMENT: u16 = 0;
const BUS: u8 = 0;

/// Both ports, address and data.
const PORTS: u8 = 8;

/// Who asks for what the operating system may control (PCI Firmware Specification 3.3, section 4.5.1).
const OSC_OF_HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// In the first word of its buffer.
const OSC_UNKNOWN_UUID: u32 = 1 << 2;
const OSC_MASKED: u32 = 1 << 4;

/// The host bridge: the window for BARs, no interrupt pins to route, as all functions have messages (PCI Firmware
/// Specification 3.3, section 4.6), and the slots.
pub(super) fn host_bridge() -> Vec<u8> {
    let (start, size) = PCI_BARS;
    let (address, _) = ConfigurationAddress::PORTS;
    let ports = IO::new(address as u16, address as u16, 1, PORTS);
    let window =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, start + (size - 1), None);
    let bus = AddressSpace::new_bus_number(u16::from(BUS), u16::from(BUS));
    to_bytes(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &SEGMENT),
            &Name::new(Path::new("_BBN"), &BUS),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&bus, &ports, &window])),
            &OperatingSystemCapabilities,
            &Slots,
        ],
    ))
}

/// `_OSC` (ACPI 6.5, section 6.2.11): the operating system controls nothing, as there is no native hot-plug, no power
/// management and no error reporting.
struct OperatingSystemCapabilities;

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, buffer, status, control) = (Arg(0), Arg(3), Path::new("CDW1"), Path::new("CDW3"));
        let host_bridge = Uuid::new(OSC_OF_HOST_BRIDGE);
        let of_host_bridge = Equal::new(&uuid, &host_bridge);
        let control_word = CreateDWordField::new(&control, &buffer, &8u8);
        let masked = Or::new(&status, &status, &OSC_MASKED);
        let nothing = Store::new(&control, &ZERO);
        let answer = Return::new(&buffer);
        Method::new(
            Path::new("_OSC"),
            4,
            false,
            vec![
                &CreateDWordField::new(&status, &buffer, &ZERO),
                &If::new(&of_host_bridge, vec![&control_word, &masked, &nothing, &answer]),
                &Or::new(&status, &status, &OSC_UNKNOWN_UUID),
                &answer,
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// What no function has but is taken: configuration space as memory is to be in a motherboard's resources (PCI Firmware
/// Specification 3.3, section 4.1.2).
pub(super) fn motherboard() -> Vec<u8> {
    let ecam = Memory32Fixed::new(true, PCI_ECAM, Ecam::LENGTH as u32);
    to_bytes(&Device::new(
        Path::new("MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
        ],
    ))
}

/// Where configuration space is in memory.
pub(super) fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(PCI_ECAM.into(), SEGMENT, BUS, BUS);
    to_bytes(&mcfg)
}
