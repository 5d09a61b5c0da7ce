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

/// Up to as many ranges are looked through one by one: a processor that sees the same device again foresees each step, and
/// a bisection makes it wait for each.
const FEW: usize = 16;

/// A device and its addresses.
#[derive(Clone)]
pub(super) struct Range {
    pub(super) start: u64,
    /// Not 0, and `start + length` is at most 2^64.
    length: u64,
    pub(super) device: Arc<dyn BusDevice>,
}

impl Range {
    /// A device at `length` addresses from `start`; `name` is for messages.
    pub(super) fn new(
        start: u64,
        length: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<Self, BusError> {
        let last = length.checked_sub(1).and_then(|more| start.checked_add(more));
        last.map(|_| Self { start, length, device }).ok_or(BusError::BadRange { name, start, length })
    }

    fn last(&self) -> u64 {
        self.start.wrapping_add(self.length.wrapping_sub(1))
    }
}

/// Ranges by ascending start, none overlapping.
#[derive(Clone, Default)]
pub struct Ranges {
    ranges: Vec<Range>,
    /// Of the devices, in the order of the ranges: apart, so that what a search reads is close together.
    names: Vec<&'static str>,
}

impl Ranges {
    /// The range that contains all `size` bytes from `address`, and the offset of the first one in it.
    #[inline]
    pub(super) fn find_whole(&self, address: u64, size: usize) -> Option<(&Range, u64)> {
        let range = if self.ranges.len() <= FEW {
            self.ranges.iter().rfind(|range| range.start <= address)?
        } else {
            let after = self.ranges.partition_point(|range| range.start <= address);
            self.ranges.get(after.checked_sub(1)?)?
        };
        let offset = address.wrapping_sub(range.start);
        let left = range.length.checked_sub(offset)?;
        (size as u64 <= left).then_some((range, offset))
    }

    /// Who answers at `address`, with the offset, and for how many of the next `length` bytes; at least one, and at most to
    /// the end of the address space, where the access wraps as hardware would.
    pub(super) fn piece(&self, address: u64, length: usize) -> (Option<(&Range, u64)>, usize) {
        let found = self.find_whole(address, 1);
        let available = match found {
            Some((range, offset)) => range.length.wrapping_sub(offset),
            None => {
                let to_end = u64::MAX.wrapping_sub(address).saturating_add(1);
                self.next_start(address).map_or(to_end, |next| next.wrapping_sub(address))
            }
        };
        (found, length.min(usize::try_from(available).unwrap_or(usize::MAX)).max(1))
    }

    /// The first address at or after `address` that some device answers.
    fn next_start(&self, address: u64) -> Option<u64> {
        self.ranges.get(self.ranges.partition_point(|range| range.start < address)).map(|range| range.start)
    }

    /// Whether no range has any of `length` addresses from `start`.
    pub(super) fn is_free(&self, start: u64, length: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.last() < start);
        let end = start.saturating_add(length);
        self.ranges.get(at).is_none_or(|next| next.start >= end)
    }

    /// The same with `new` in it.
    pub(super) fn with(&self, new: Range, name: &'static str) -> Result<Self, BusError> {
        let at = self.ranges.partition_point(|range| range.last() < new.start);
        let next = self.ranges.get(at).zip(self.names.get(at));
        if let Some((_, old)) = next.filter(|(range, _)| range.start <= new.last()) {
            return Err(BusError::Overlap { new: name, start: new.start, length: new.length, old });
        }
        let mut changed = self.clone();
        changed.ranges.insert(at, new);
        changed.names.insert(at, name);
        Ok(changed)
    }

    /// The same without the range that starts at `start`, and what was there.
    pub(super) fn without(&self, start: u64) -> Result<(Self, Range, &'static str), BusError> {
        let at =
            self.ranges.iter().position(|range| range.start == start).ok_or(BusError::NotFound(start))?;
        let mut changed = self.clone();
        let (range, name) = (changed.ranges.remove(at), changed.names.remove(at));
        Ok((changed, range, name))
    }

    /// The same with the device that starts at `from` at `to` instead.
    pub(super) fn moved(&self, from: u64, to: u64) -> Result<Self, BusError> {
        let (rest, range, name) = self.without(from)?;
        rest.with(Range::new(to, range.length, name, range.device)?, name)
    }

    /// The same with `device` in the place of the one that starts at `start`.
    pub(super) fn replaced(
        &self,
        start: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<Self, BusError> {
        let (rest, range, _) = self.without(start)?;
        rest.with(Range { device, ..range }, name)
    }
}
