//! ACPI: the tables that tell a guest kernel what its machine has.
//!
//! A hardware-reduced platform (ACPI 6.5, section 4.1): no 8259, no interval timer, no SCI, no general-purpose event
//! blocks and no keyboard controller to look for; a guest that believes the tables does not spend exits on finding out.
//! Events come from the generic event device. The tables lie between 896 KiB and 1 MiB, where a kernel that is not told
//! their address looks for them (section 5.2.5.1).

mod dsdt;
mod madt;
mod pci;
mod slots;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use vmm_devices::acpi::{PowerControl, RESET_VALUE};

use crate::machine::layout::{ACPI_END, ACPI_START, POWER_PORTS};
use crate::machine::virtio::MmioPlace;

/// Identity of the one who made the tables.
const OEM_ID: [u8; 6] = *b"VMMCLI";
const OEM_TABLE_ID: [u8; 8] = *b"VMMCLI01";
const OEM_REVISION: u32 = 1;

/// Length of the header that all tables but the RSDP begin with.
const HEADER: u32 = 36;
/// The tables start at multiples of this.
const ALIGNMENT: u64 = 16;

/// `IAPC_BOOT_ARCH`, the bits that say what is not there: there is no VGA to draw on, and no CMOS clock to set (the time
/// is kvm-clock's). Bit 1, a keyboard controller, stays clear: it takes a reset command and nothing else.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Why a guest gets no tables.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcpiError {
    /// More processors than the place for the tables has room for.
    #[error("the ACPI tables of {vcpus} vCPUs take {length:#x} bytes; there are {limit:#x}")]
    TooLong {
        /// Number of vCPUs.
        vcpus: u32,
        /// Length of the tables in bytes.
        length: u64,
        /// Length of their place in bytes.
        limit: u64,
    },
    /// Guest memory lacks their place.
    #[error("guest memory at {ACPI_START:#x}")]
    Memory(#[source] GuestMemoryError),
}

/// Where a guest finds the first table.
pub(crate) const RSDP: u64 = ACPI_START;

/// What of a machine differs from one to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described<'a> {
    /// Number of vCPUs, whose APIC ids are their indices.
    pub(crate) vcpus: u32,
    /// Whether there is a PCI bus.
    pub(crate) pci: bool,
    /// Where its virtio devices in MMIO space are.
    pub(crate) virtio: &'a [MmioPlace],
}

/// Writes the tables of the machine into guest memory.
pub(crate) fn write<M>(memory: &M, machine: Described<'_>) -> Result<(), AcpiError>
where
    M: GuestMemory + ?Sized,
{
    let tables = tables(machine)?;
    memory.write_slice(&tables, GuestAddress(ACPI_START)).map_err(AcpiError::Memory)
}

/// The bytes from [`ACPI_START`] on: RSDP, DSDT, FADT, MADT, MCFG, XSDT.
fn tables(machine: Described<'_>) -> Result<Vec<u8>, AcpiError> {
    let vcpus = machine.vcpus;
    // The RSDP comes first and is known last.
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = place(&mut bytes, &dsdt::dsdt(machine));
    let fadt = place(&mut bytes, &fadt(dsdt));
    let madt = place(&mut bytes, &madt::madt(vcpus));
    let mcfg = machine.pci.then(|| place(&mut bytes, &pci::mcfg()));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(mcfg) = mcfg {
        xsdt.add_entry(mcfg);
    }
    let xsdt = place(&mut bytes, &to_bytes(&xsdt));
    bytes[..Rsdp::len()].copy_from_slice(&to_bytes(&Rsdp::new(OEM_ID, xsdt)));
    let (length, limit) = (bytes.len() as u64, ACPI_END - ACPI_START);
    if length > limit {
        return Err(AcpiError::TooLong { vcpus, length, limit });
    }
    Ok(bytes)
}

/// Appends a table and returns its guest-physical address.
fn place(bytes: &mut Vec<u8>, table: &[u8]) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    let address = ACPI_START + bytes.len() as u64;
    bytes.extend_from_slice(table);
    address
}

/// The fixed description: what kind of platform it is, and how it is turned off and reset.
fn fadt(dsdt: u64) -> Vec<u8> {
    let register = |offset| {
        let address = u64::from(POWER_PORTS) + offset;
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // The power button is a device of the DSDT, not a fixed one; there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.reset_reg = register(PowerControl::RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(PowerControl::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(PowerControl::SLEEP_STATUS);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    to_bytes(&fadt.finalize())
}

/// A table that acpi_tables has no type for: `body` after the header.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::layout::PCI_ECAM;

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest-physical address, its length and its checksum looked at.
    fn table_at(tables: &[u8], address: u64) -> &[u8] {
        assert_eq!(address % ALIGNMENT, 0);
        let at = usize::try_from(address - ACPI_START).unwrap();
        let length = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap());
        let table = &tables[at..at + length as usize];
        assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_has_a_good_checksum() {
        for vcpus in [1, 2, 254, 255, 1024] {
            let tables = tables(Described { vcpus, pci: true, virtio: &[] }).unwrap();
            assert_eq!(
                (&tables[..8], sum(&tables[..20]), sum(&tables[..36])),
                (b"RSD PTR ".as_slice(), 0, 0)
            );
            let xsdt = table_at(&tables, word(&tables, 24));
            assert_eq!((&xsdt[..4], xsdt.len()), (b"XSDT".as_slice(), 36 + 3 * 8));
            let (fadt, madt) = (table_at(&tables, word(xsdt, 36)), table_at(&tables, word(xsdt, 44)));
            assert_eq!((&fadt[..4], &madt[..4]), (b"FACP".as_slice(), b"APIC".as_slice()));
            let dsdt = table_at(&tables, word(fadt, 140));
            assert_eq!(&dsdt[..4], b"DSDT");
            let mcfg = table_at(&tables, word(xsdt, 52));
            assert_eq!((&mcfg[..4], word(mcfg, 44)), (b"MCFG".as_slice(), u64::from(PCI_ECAM)));
        }
    }

    #[test]
    fn a_machine_without_pci_has_no_table_of_it() {
        let tables = tables(Described { vcpus: 1, pci: false, virtio: &[] }).unwrap();
        assert_eq!(table_at(&tables, word(&tables, 24)).len(), 36 + 2 * 8);
        assert!(!tables.windows(4).any(|name| name == b"MCFG" || name == b"PCI0"));
    }

    #[test]
    fn more_processors_than_fit_are_refused() {
        assert!(matches!(
            tables(Described { vcpus: 4096, pci: false, virtio: &[] }),
            Err(AcpiError::TooLong { vcpus: 4096, .. })
        ));
    }

    #[test]
    fn the_fixed_description_names_the_registers_of_the_power_device() {
        let fadt = fadt(0x1234);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "hardware-reduced, with a reset register");
        // Generic addresses: space, width, offset, access size, address (ACPI 6.5, table 5.1).
        let register = |at: usize| (fadt[at..at + 4].to_vec(), word(&fadt, at + 4));
        assert_eq!(register(116), (vec![1, 8, 0, 1], u64::from(POWER_PORTS) + 2));
        assert_eq!(fadt[128], 1);
        assert_eq!(register(244), (vec![1, 8, 0, 1], u64::from(POWER_PORTS)));
        assert_eq!(register(256), (vec![1, 8, 0, 1], u64::from(POWER_PORTS) + 1));
    }
}
