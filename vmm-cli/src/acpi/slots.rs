//! `Slots`: the slots of the PCI bus in AML, whose devices come and go while the guest runs.
//!
//! Each device of the bus but the host bridge's is a slot that can be ejected (ACPI 6.5, section 6.3). The generic event device
//! calls `PCNT`, which reads the registers of [`HotplugSlots`] and notifies the slots that they name. What is in a slot, its
//! configuration space says: there is no `_STA`.

use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, Name,
    Notify, OpRegion, OpRegionSpace, Path, Store,
};
use acpi_tables::{Aml, AmlSink};
use vmm_devices::acpi::HotplugSlots;

use super::to_bytes;
use crate::machine::layout::HOTPLUG_PORTS;

/// Devices of the bus that are slots.
const SLOTS: std::ops::Range<u8> = 1..32;

/// What a slot is notified of (section 5.6.6): look whether a device has come; the device is to be ejected.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The registers, the slots, and the method that notifies them, inside the host bridge.
pub(super) struct Slots;

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        registers(sink);
        for slot in SLOTS {
            device(slot).to_aml_bytes(sink);
        }
        Raw(notify()).to_aml_bytes(sink);
    }
}

/// Bytes that are AML already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `PCHG`, `PLVG` and `PEJT`, in the order of their places.
fn registers(sink: &mut dyn AmlSink) {
    let length = HotplugSlots::LENGTH as u8;
    let register = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    OpRegion::new(Path::new("PCIS"), OpRegionSpace::SystemIO, &HOTPLUG_PORTS, &length).to_aml_bytes(sink);
    Field::new(
        Path::new("PCIS"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![register(b"PCHG"), register(b"PLVG"), register(b"PEJT")],
    )
    .to_aml_bytes(sink);
}

fn name(slot: u8) -> Path {
    Path::new(&format!("S{slot:03X}"))
}

fn bit(slot: u8) -> u32 {
    1 << slot
}

/// One slot: all functions of a device, which leave together (section 6.1.1).
fn device(slot: u8) -> Raw {
    let address = u32::from(slot) << 16;
    let (register, bit) = (Path::new("PEJT"), bit(slot));
    let eject = Store::new(&register, &bit);
    Raw(to_bytes(&Device::new(
        name(slot),
        vec![
            &Name::new(Path::new("_ADR"), &address),
            &Name::new(Path::new("_SUN"), &slot),
            &Method::new(Path::new("_EJ0"), 1, true, vec![&eject]),
        ],
    )))
}

/// `PCNT`: reads what is new, which clears it, and notifies each slot.
fn notify() -> Vec<u8> {
    let (changed, leaving, one) = (Local(0), Local(1), Local(2));
    let (read_changed, read_leaving) = (Path::new("PCHG"), Path::new("PLVG"));
    let mut steps = vec![
        Raw(to_bytes(&Store::new(&changed, &read_changed))),
        Raw(to_bytes(&Store::new(&leaving, &read_leaving))),
    ];
    for slot in SLOTS {
        let (name, bit) = (name(slot), bit(slot));
        for (slots, event) in [(&changed, DEVICE_CHECK), (&leaving, EJECT_REQUEST)] {
            steps.push(Raw(to_bytes(&And::new(&one, slots, &bit))));
            steps.push(Raw(to_bytes(&If::new(&one, vec![&Notify::new(&name, &event)]))));
        }
    }
    let steps = steps.iter().map(|step| step as &dyn Aml).collect();
    to_bytes(&Method::new(Path::new("PCNT"), 0, true, steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(bytes: &[u8], part: &[u8]) -> usize {
        bytes.windows(part.len()).filter(|window| *window == part).count()
    }

    #[test]
    fn every_device_but_the_bridge_is_a_slot_with_its_number_and_its_bit() {
        let mut aml = Vec::new();
        Slots.to_aml_bytes(&mut aml);
        assert_eq!((count(&aml, b"_EJ0"), count(&aml, b"_SUN"), count(&aml, b"S000")), (31, 31, 0));
        for slot in SLOTS {
            let name = format!("S{slot:03X}");
            let address = [b"_ADR\x0c".as_slice(), &(u32::from(slot) << 16).to_le_bytes()].concat();
            assert_eq!(count(&aml, &address), 1, "{name}");
            // Store (the bit, PEJT).
            let bit = [b"\x70\x0c".as_slice(), &bit(slot).to_le_bytes(), b"PEJT"].concat();
            assert!(count(&aml, &bit) == 1 || slot < 16, "{name}");
            // Its definition, and two notifications.
            assert_eq!(count(&aml, name.as_bytes()), 3, "{name}");
            for event in [b"\x01".as_slice(), b"\x0a\x03"] {
                let notify = [b"\x86", name.as_bytes(), event].concat();
                assert_eq!(count(&aml, &notify), 1, "{name}");
            }
        }
    }

    #[test]
    fn the_registers_are_where_the_device_has_them() {
        let mut aml = Vec::new();
        registers(&mut aml);
        let region = [b"PCIS\x01\x0b".as_slice(), &HOTPLUG_PORTS.to_le_bytes(), b"\x0a\x0c"].concat();
        assert_eq!(count(&aml, &region), 1);
        // Each 32 bits: a length of one byte and six bits.
        assert!(aml.ends_with(b"PCHG\x20PLVG\x20PEJT\x20"), "{aml:02x?}");
        let offsets = [HotplugSlots::CHANGED, HotplugSlots::LEAVING, HotplugSlots::EJECT];
        assert_eq!(offsets, [0, 4, 8]);
    }
}
