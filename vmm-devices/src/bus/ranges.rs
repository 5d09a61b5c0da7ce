//! `Ranges`: the table of a bus, a plain value: changing it makes another one.

use std::sync::Arc;

use super::BusDevice;

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
pub(super) struct Range {
    pub(super) start: u64,
    /// The last address, so that a range can end where the address space does.
    pub(super) last: u64,
    pub(super) name: &'static str,
    pub(super) device: Arc<dyn BusDevice>,
}

/// Ranges by ascending start, none overlapping.
#[derive(Clone, Default)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The range that contains `address`.
    #[inline]
    pub(super) fn find(&self, address: u64) -> Option<&Range> {
        let after = self.0.partition_point(|range| range.start <= address);
        self.0.get(after.checked_sub(1)?).filter(|range| address <= range.last)
    }

    /// The first address at or after `address` that some device answers.
    fn next_start(&self, address: u64) -> Option<u64> {
        self.0.get(self.0.partition_point(|range| range.start < address)).map(|range| range.start)
    }

    pub(super) fn insert(&self, new: Range) -> Result<Self, BusError> {
        let at = self.0.partition_point(|range| range.last < new.start);
        if let Some(old) = self.0.get(at).filter(|old| old.start <= new.last) {
            let length = new.last.saturating_sub(new.start).saturating_add(1);
            return Err(BusError::Overlap { new: new.name, start: new.start, length, old: old.name });
        }
        let mut ranges = self.0.clone();
        ranges.insert(at, new);
        Ok(Self(ranges))
    }

    pub(super) fn remove(&self, start: u64) -> Result<Self, BusError> {
        let mut ranges = self.0.clone();
        ranges.retain(|range| range.start != start);
        if ranges.len() == self.0.len() { Err(BusError::NotFound(start)) } else { Ok(Self(ranges)) }
    }

    /// The same with the device that starts at `from` at `to` instead.
    pub(super) fn moved(&self, from: u64, to: u64) -> Result<Self, BusError> {
        let range = self.starting_at(from)?.clone();
        let length = range.last.wrapping_sub(from);
        let last = to.checked_add(length);
        let bad_range =
            || BusError::BadRange { name: range.name, start: to, length: length.saturating_add(1) };
        let last = last.ok_or_else(bad_range)?;
        self.remove(from)?.insert(Range { start: to, last, ..range })
    }

    /// The same with `device` in the place of the one that starts at `start`.
    pub(super) fn replaced(
        &self,
        start: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<Self, BusError> {
        let last = self.starting_at(start)?.last;
        self.remove(start)?.insert(Range { start, last, name, device })
    }

    fn starting_at(&self, start: u64) -> Result<&Range, BusError> {
        self.find(start).filter(|range| range.start == start).ok_or(BusError::NotFound(start))
    }

    /// Who answers at `address`, and for how many of the next `length` bytes; at least one, and at most to the end of
    /// the address space, where the access wraps as hardware would.
    pub(super) fn piece(&self, address: u64, length: usize) -> (Option<&Range>, usize) {
        let to_end = u64::MAX.wrapping_sub(address).saturating_add(1);
        let (range, available) = match self.find(address) {
            Some(range) => (Some(range), range.last.wrapping_sub(address).saturating_add(1)),
            None => (None, self.next_start(address).map_or(to_end, |next| next.wrapping_sub(address))),
        };
        (range, length.min(usize::try_from(available).unwrap_or(usize::MAX)).max(1))
    }
}

impl Range {
    /// A device at `length` addresses from `start`.
    pub(super) fn new(
        start: u64,
        length: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<Self, BusError> {
        let last = length.checked_sub(1).and_then(|more| start.checked_add(more));
        let last = last.ok_or(BusError::BadRange { name, start, length })?;
        Ok(Self { start, last, name, device })
    }

    /// Whether an access of `size` bytes at `address`, which the range contains, ends inside it too.
    #[inline]
    pub(super) fn fits(&self, address: u64, size: usize) -> bool {
        self.last.wrapping_sub(address) >= (size as u64).saturating_sub(1)
    }
}
