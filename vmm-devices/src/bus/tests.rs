//! Accesses of a bus, and its changes.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Reads as the low byte of each address it is asked at; remembers writes.
struct Echo {
    base: u64,
    written: Mutex<Vec<(u64, u8)>>,
}

impl Echo {
    fn at(base: u64) -> Arc<Self> {
        Arc::new(Self { base, written: Mutex::default() })
    }
}

impl BusDevice for Echo {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (self.base.wrapping_add(offset) as u8).wrapping_add(i as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let base = self.base.wrapping_add(offset);
        let mut written = self.written.lock().unwrap();
        written.extend(data.iter().enumerate().map(|(i, &byte)| (base.wrapping_add(i as u64), byte)));
    }
}

fn read(bus: &Bus, address: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    bus.read(address, length, &mut data);
    data
}

#[test]
fn the_table_before_an_insertion_keeps_no_device_after_it_was_waited_for() {
    let (bus, first) = (Bus::new("test"), Echo::at(0x10));
    bus.insert(0x10, 4, "first", first.clone()).unwrap();
    let retired = bus.insert_retiring(0x20, 4, "second", Echo::at(0x20)).unwrap();
    retired.wait().unwrap();
    bus.remove(0x10).unwrap().wait().unwrap();
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn unclaimed_accesses_read_as_all_ones_and_are_counted() {
    let bus = Bus::new("test");
    assert_eq!(read(&bus, 0x80, 4), [0xff; 4]);
    bus.write(0x80, 4, &[0; 4]);
    assert_eq!(bus.unclaimed(), 2);
}

#[test]
fn overlap_is_refused_with_both_names() {
    let bus = Bus::new("test");
    bus.insert(0x10, 0x10, "first", Echo::at(0x10)).unwrap();
    for (start, length) in [(0x10, 0x10), (0x1f, 1), (0, 0x11), (0x18, 0x100), (0, u64::MAX)] {
        let error = bus.insert(start, length, "second", Echo::at(start)).unwrap_err();
        assert_eq!(error, BusError::Overlap { new: "second", start, length, old: "first" });
    }
    bus.insert(0x20, 1, "second", Echo::at(0x20)).unwrap();
    bus.insert(0x0f, 1, "third", Echo::at(0x0f)).unwrap();
    let error = bus.insert(u64::MAX, 2, "last", Echo::at(0)).unwrap_err();
    assert_eq!(error, BusError::BadRange { name: "last", start: u64::MAX, length: 2 });
}

#[test]
fn a_string_access_reaches_the_device_element_by_element() {
    struct Counter(Mutex<u16>);
    impl BusDevice for Counter {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            let mut count = self.0.lock().unwrap();
            data.copy_from_slice(&count.to_le_bytes()[..data.len()]);
            *count += 1;
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }
    let bus = Bus::new("test");
    bus.insert(0x60, 2, "counter", Arc::new(Counter(Mutex::new(0)))).unwrap();
    let mut bytes = [0; 3];
    bus.read(0x60, 1, &mut bytes);
    assert_eq!(bytes, [0, 1, 2]);
    let mut data = [0; 6];
    bus.read(0x60, 2, &mut data);
    assert_eq!(data, [3, 0, 4, 0, 5, 0]);
}

#[test]
fn a_string_write_is_as_many_writes_at_one_offset() {
    let bus = Bus::new("test");
    let device = Echo::at(0x60);
    bus.insert(0x60, 4, "device", device.clone()).unwrap();
    bus.write(0x62, 2, &[1, 2, 3, 4]);
    bus.write(0x61, 1, &[5, 6]);
    let expected = [(0x62, 1), (0x63, 2), (0x62, 3), (0x63, 4), (0x61, 5), (0x61, 6)];
    assert_eq!(*device.written.lock().unwrap(), expected);
}

#[test]
fn fault_b1_an_access_across_two_devices_and_a_hole_is_split() {
    let bus = Bus::new("test");
    let (first, second) = (Echo::at(0x10), Echo::at(0x16));
    bus.insert(0x10, 4, "first", first.clone()).unwrap();
    bus.insert(0x16, 2, "second", second.clone()).unwrap();
    assert_eq!(read(&bus, 0x12, 8), [0x12, 0x13, 0xff, 0xff, 0x16, 0x17, 0xff, 0xff]);
    bus.write(0x12, 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(*first.written.lock().unwrap(), [(0x12, 1), (0x13, 2)]);
    assert_eq!(*second.written.lock().unwrap(), [(0x16, 5), (0x17, 6)]);
}

#[test]
fn after_remove_and_wait_the_device_is_not_called() {
    let bus = Bus::new("test");
    let device = Echo::at(0x10);
    bus.insert(0x10, 4, "device", device.clone()).unwrap();
    bus.remove(0x10).unwrap().wait().unwrap();
    bus.write(0x10, 1, &[1]);
    assert!(device.written.lock().unwrap().is_empty());
    assert_eq!(Arc::strong_count(&device), 1);
    assert_eq!(bus.remove(0x10).err(), Some(BusError::NotFound(0x10)));
}

proptest! {
    #[test]
    fn every_byte_comes_from_the_device_that_has_its_address(
        ranges in prop::collection::vec((0u64..64, 1u64..8), 0..8),
        address in prop_oneof![0u64..72, (u64::MAX - 8)..=u64::MAX],
        length in 1usize..9,
    ) {
        let bus = Bus::new("test");
        let mut owners = std::collections::BTreeMap::new();
        for (start, length) in ranges {
            let free = (start..start + length).all(|a| !owners.contains_key(&a));
            prop_assert_eq!(bus.insert(start, length, "d", Echo::at(start)).is_ok(), free);
            if free {
                owners.extend((start..start + length).map(|a| (a, ())));
            }
        }
        let expected: Vec<u8> = (0..length as u64)
            .map(|i| address.wrapping_add(i))
            .map(|a| if owners.contains_key(&a) { a as u8 } else { 0xff })
            .collect();
        prop_assert_eq!(read(&bus, address, length), expected);
    }
}

#[test]
fn a_moved_device_answers_at_its_new_place_only() {
    let bus = Bus::new("test");
    bus.insert(0x10, 4, "moving", Echo::at(0x10)).unwrap();
    bus.insert(0x40, 4, "in the way", Echo::at(0x40)).unwrap();
    let refused = bus.move_range(0x10, 0x3d).err();
    let overlap = BusError::Overlap { new: "moving", start: 0x3d, length: 4, old: "in the way" };
    assert_eq!(refused, Some(overlap));
    let refused = bus.move_range(0x10, u64::MAX - 2).err();
    assert_eq!(refused, Some(BusError::BadRange { name: "moving", start: u64::MAX - 2, length: 4 }));
    assert_eq!(bus.move_range(0x11, 0x20).err(), Some(BusError::NotFound(0x11)));
    assert_eq!(read(&bus, 0x10, 1), [0x10]);
    // Its own old place is not in its way.
    bus.move_range(0x10, 0x12).unwrap().wait().unwrap();
    assert_eq!(read(&bus, 0x10, 8), [0xff, 0xff, 0x10, 0x11, 0x12, 0x13, 0xff, 0xff]);
}

#[test]
fn a_replaced_device_is_not_called_and_its_addresses_are_the_new_ones() {
    let bus = Bus::new("test");
    let (old, new) = (Echo::at(0), Echo::at(0x50));
    bus.insert(0x10, 4, "old", old.clone()).unwrap();
    bus.replace(0x10, "new", new.clone()).unwrap().wait().unwrap();
    bus.write(0x12, 4, &[1, 2, 3, 4]);
    assert!(old.written.lock().unwrap().is_empty());
    assert_eq!(*new.written.lock().unwrap(), [(0x52, 1), (0x53, 2)]);
    assert_eq!(Arc::strong_count(&old), 1);
    assert_eq!(bus.replace(0x12, "new", new).err(), Some(BusError::NotFound(0x12)));
}

#[test]
fn a_handler_that_waits_for_its_own_bus_is_refused() {
    struct Waits(std::sync::OnceLock<Arc<Bus>>, Mutex<Option<vmm_core::InReadSection>>);
    impl BusDevice for Waits {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {
            let bus = self.0.get().unwrap();
            *self.1.lock().unwrap() = bus.move_range(0x10, 0x20).unwrap().wait().err();
        }
    }
    let (bus, device) = (Arc::new(Bus::new("test")), Arc::new(Waits(Default::default(), Mutex::default())));
    device.0.set(Arc::clone(&bus)).ok().unwrap();
    bus.insert(0x10, 4, "device", device.clone()).unwrap();
    bus.write(0x10, 1, &[0]);
    assert_eq!(*device.1.lock().unwrap(), Some(vmm_core::InReadSection));
    // Moved it is: only nobody has waited.
    assert_eq!(bus.remove(0x20).unwrap().wait(), Ok(()));
}
