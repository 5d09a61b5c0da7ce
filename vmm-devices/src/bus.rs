//! `Bus`: which device answers at which address, for port I/O and for MMIO alike.
//!
//! The table is a [`Published`] cell: an access takes no lock, changes are made while vCPUs run. No lock of the bus is
//! held while a device runs.

use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_core::{Deferred, LogLimit, Published, Retired};

/// A device as the bus sees it. `offset` counts from the start of the device's range; offset and length stay inside
/// it. Called by several vCPUs at a time.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads. `data` is all ones before the call.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes.
    fn write(&self, offset: u64, data: &[u8]);

    /// As [`write`](Self::write), which a device leaves to this method for accesses that would have to wait. `Some`: the
    /// access ends when the device says so, and the vCPU that made it sleeps until then.
    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        self.write(offset, data);
        None
    }

    /// A string read: each element of `size` bytes is a [`read`](Self::read) at the same `offset`.
    ///
    /// Not for devices to change. It is a method so that a string access takes one dynamic call and not one an
    /// element.
    fn read_elements(&self, offset: u64, size: usize, data: &mut [u8]) {
        if size <= 1 {
            // Most string accesses, and a length that the compiler knows.
            data.iter_mut().for_each(|byte| self.read(offset, slice::from_mut(byte)));
        } else {
            data.chunks_exact_mut(size).for_each(|element| self.read(offset, element));
        }
    }

    /// A string write: each element of `size` bytes is a [`write`](Self::write) at the same `offset`. As
    /// [`read_elements`](Self::read_elements).
    fn write_elements(&self, offset: u64, size: usize, data: &[u8]) -> Option<Deferred> {
        let elements = data.chunks_exact(size.max(1)).map(|element| self.write_deferred(offset, element));
        elements.fold(None, both)
    }
}

/// A device that wants a lock around each access; see the [`BusDevice`] of its `Mutex`.
pub trait BusDeviceMut: Send {
    /// As [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// As [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<D: BusDeviceMut> BusDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

/// Why a bus cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another device answers at some address of the range.
    #[error("{new} at {start:#x} ({length:#x} bytes) overlaps {old}")]
    Overlap {
        /// The device to be added.
        new: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        length: u64,
        /// The device that is there.
        old: &'static str,
    },
    /// The range is empty or passes the end of the address space.
    #[error("{name} at {start:#x} ({length:#x} bytes) is not a range of addresses")]
    BadRange {
        /// The device.
        name: &'static str,
        /// Its first address.
        start: u64,
        /// Its length.
        length: u64,
    },
    /// No device starts there.
    #[error("no device starts at {0:#x}")]
    NotFound(u64),
}

#[derive(Clone)]
struct Range {
    start: u64,
    /// The last address, so that a range can end where the address space does.
    last: u64,
    name: &'static str,
    device: Arc<dyn BusDevice>,
}

/// Ranges by ascending start, none overlapping.
#[derive(Clone, Default)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The range that contains `address`.
    #[inline]
    fn find(&self, address: u64) -> Option<&Range> {
        let after = self.0.partition_point(|range| range.start <= address);
        self.0.get(after.checked_sub(1)?).filter(|range| address <= range.last)
    }

    /// The first address at or after `address` that some device answers.
    fn next_start(&self, address: u64) -> Option<u64> {
        self.0.get(self.0.partition_point(|range| range.start < address)).map(|range| range.start)
    }

    fn insert(&self, new: Range) -> Result<Self, BusError> {
        let at = self.0.partition_point(|range| range.last < new.start);
        if let Some(old) = self.0.get(at).filter(|old| old.start <= new.last) {
            let length = new.last.saturating_sub(new.start).saturating_add(1);
            return Err(BusError::Overlap { new: new.name, start: new.start, length, old: old.name });
        }
        let mut ranges = self.0.clone();
        ranges.insert(at, new);
        Ok(Self(ranges))
    }

    fn remove(&self, start: u64) -> Result<Self, BusError> {
        let mut ranges = self.0.clone();
        ranges.retain(|range| range.start != start);
        if ranges.len() == self.0.len() { Err(BusError::NotFound(start)) } else { Ok(Self(ranges)) }
    }
}

/// One address space with devices in it.
pub struct Bus {
    name: &'static str,
    ranges: Published<Ranges>,
    unclaimed: AtomicU64,
    unclaimed_log: LogLimit,
}

impl Bus {
    /// An empty bus; `name` is for the log.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ranges: Published::new(Ranges::default()),
            unclaimed: AtomicU64::new(0),
            unclaimed_log: LogLimit::default(),
        }
    }

    /// Lets `device` answer at `length` addresses from `start`. Accesses that begin after the return reach it.
    pub fn insert(
        &self,
        start: u64,
        length: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = length.checked_sub(1).and_then(|more| start.checked_add(more));
        let last = last.ok_or(BusError::BadRange { name, start, length })?;
        let retired = self.ranges.update(|ranges| ranges.insert(Range { start, last, name, device }))?;
        // The old table names no device that the new one does not: nobody needs to wait for its readers.
        drop(retired);
        Ok(())
    }

    /// Takes the device that starts at `start` off the bus. After [`Retired::wait`] no call into it is running and
    /// none will come.
    pub fn remove(&self, start: u64) -> Result<Retired<Ranges>, BusError> {
        self.ranges.update(|ranges| ranges.remove(start))
    }

    /// One guest read of `data.len() / size` elements, all at the same `address`. Where no device is, the elements
    /// read as all ones.
    #[inline]
    pub fn read(&self, address: u64, size: usize, data: &mut [u8]) {
        let ranges = self.ranges.load();
        data.fill(0xff);
        match ranges.find(address) {
            Some(range) if fits(range, address, size) => {
                let offset = address.wrapping_sub(range.start);
                if data.len() == size {
                    range.device.read(offset, data);
                } else {
                    range.device.read_elements(offset, size, data);
                }
            }
            _ => {
                for element in data.chunks_exact_mut(size.max(1)) {
                    self.read_pieces(&ranges, address, element);
                }
            }
        }
    }

    /// One guest write of `data.len() / size` elements, all to the same `address`. Where no device is, they are lost.
    /// `Some`: the access ends when the device says so.
    #[inline]
    pub fn write(&self, address: u64, size: usize, data: &[u8]) -> Option<Deferred> {
        let ranges = self.ranges.load();
        match ranges.find(address) {
            Some(range) if fits(range, address, size) => {
                let offset = address.wrapping_sub(range.start);
                if data.len() == size {
                    range.device.write_deferred(offset, data)
                } else {
                    range.device.write_elements(offset, size, data)
                }
            }
            _ => {
                let elements = data.chunks_exact(size.max(1));
                elements.map(|element| self.write_pieces(&ranges, address, element)).fold(None, both)
            }
        }
    }

    /// A read that is not inside one range: each piece goes where it belongs, holes stay all ones.
    #[cold]
    fn read_pieces(&self, ranges: &Ranges, mut address: u64, mut data: &mut [u8]) {
        while !data.is_empty() {
            let (range, length) = piece(ranges, address, data.len());
            let Some((head, tail)) = data.split_at_mut_checked(length) else {
                return;
            };
            match range {
                Some(range) => range.device.read(address.wrapping_sub(range.start), head),
                None => self.note_unclaimed("read", address, length),
            }
            data = tail;
            address = address.wrapping_add(length as u64);
        }
    }

    /// A write that is not inside one range: each piece goes where it belongs, what falls into holes is lost.
    #[cold]
    fn write_pieces(&self, ranges: &Ranges, mut address: u64, mut data: &[u8]) -> Option<Deferred> {
        let mut deferred = None;
        while !data.is_empty() {
            let (range, length) = piece(ranges, address, data.len());
            let Some((head, tail)) = data.split_at_checked(length) else {
                break;
            };
            match range {
                Some(range) => {
                    let offset = address.wrapping_sub(range.start);
                    deferred = both(deferred, range.device.write_deferred(offset, head));
                }
                None => self.note_unclaimed("write", address, length),
            }
            data = tail;
            address = address.wrapping_add(length as u64);
        }
        deferred
    }

    /// How many accesses, or pieces of one, have fallen into holes.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn note_unclaimed(&self, access: &str, address: u64, length: usize) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Some(left_out) = self.unclaimed_log.permit()
        {
            let bus = self.name;
            tracing::debug!(
                bus,
                access,
                address = format_args!("{address:#x}"),
                length,
                left_out,
                "no such address"
            );
        }
    }
}

/// What is deferred of an access of two parts.
fn both(one: Option<Deferred>, other: Option<Deferred>) -> Option<Deferred> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.and(other)),
        (one, other) => one.or(other),
    }
}

/// Whether an access of `size` bytes at `address`, which `range` contains, ends inside it too.
#[inline]
fn fits(range: &Range, address: u64, size: usize) -> bool {
    range.last.wrapping_sub(address) >= (size as u64).saturating_sub(1)
}

/// Who answers at `address`, and for how many of the next `length` bytes; at least one, and at most to the end of
/// the address space, where the access wraps as hardware would.
fn piece(ranges: &Ranges, address: u64, length: usize) -> (Option<&Range>, usize) {
    let to_end = u64::MAX.wrapping_sub(address).saturating_add(1);
    let (range, available) = match ranges.find(address) {
        Some(range) => (Some(range), range.last.wrapping_sub(address).saturating_add(1)),
        None => (None, ranges.next_start(address).map_or(to_end, |next| next.wrapping_sub(address))),
    };
    (range, length.min(usize::try_from(available).unwrap_or(usize::MAX)).max(1))
}

#[cfg(test)]
mod tests {
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
}
