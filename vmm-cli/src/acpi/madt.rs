//! The MADT: which processors there are, and where the I/O APIC is. ACPI 6.5, section 5.2.12.

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};

use super::table;

const REVISION: u8 = 5;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// The I/O APIC's pins are GSIs from here on.
const GSI_BASE: u32 = 0;
/// Flags of the table: no 8259 beside the I/O APIC.
const FLAGS: u32 = 0;

/// Up to this number of vCPUs have an 8-bit APIC id; id 255 is the broadcast.
const LOCAL_APICS: u32 = 255;

/// The table of a machine whose vCPUs have their indices as APIC ids and as processor UIDs.
pub(super) fn madt(vcpus: u32) -> Vec<u8> {
    let mut body = [LOCAL_APIC.to_le_bytes(), FLAGS.to_le_bytes()].concat();
    for index in 0..vcpus {
        match u8::try_from(index) {
            Ok(id) if index < LOCAL_APICS => {
                ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
            }
            _ => body.extend_from_slice(&local_x2apic(index)),
        }
    }
    IoApic::new(0, IO_APIC, GSI_BASE).to_aml_bytes(&mut body);
    table(*b"APIC", REVISION, &body)
}

/// Processor Local x2APIC, section 5.2.12.12, which acpi_tables lacks.
fn local_x2apic(index: u32) -> [u8; 16] {
    const TYPE: u8 = 9;
    const ENABLED: u32 = 1;
    let mut entry = [0; 16];
    entry[0] = TYPE;
    entry[1] = 16;
    entry[4..8].copy_from_slice(&index.to_le_bytes());
    entry[8..12].copy_from_slice(&ENABLED.to_le_bytes());
    entry[12..16].copy_from_slice(&index.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type and bytes of each entry.
    fn entries(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut rest = &madt[44..];
        let mut entries = Vec::new();
        while let [kind, length, ..] = *rest {
            let (entry, tail) = rest.split_at(usize::from(length));
            entries.push((kind, entry.to_vec()));
            rest = tail;
        }
        entries
    }

    #[test]
    fn each_vcpu_is_an_enabled_local_apic_with_its_index_as_id() {
        let entries = entries(&madt(3));
        let cpus: Vec<_> = entries.iter().filter(|(kind, _)| *kind == 0).collect();
        assert_eq!(cpus.len(), 3);
        assert_eq!(cpus[2].1, [0, 8, 2, 2, 1, 0, 0, 0]);
        assert_eq!(entries.last().unwrap().1, [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    }

    #[test]
    fn ids_from_255_on_are_x2apic_entries() {
        let entries = entries(&madt(257));
        let of = |kind: u8| entries.iter().filter(move |entry| entry.0 == kind).map(|entry| &entry.1);
        assert_eq!((of(0).count(), of(9).count()), (255, 2));
        assert_eq!(of(9).next_back().unwrap(), &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    }
}
