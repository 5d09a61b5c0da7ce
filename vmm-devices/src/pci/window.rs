//! `BarWindow`: the addresses that BARs may have, and where a BAR is before anybody has moved it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use crate::sync::lock;

/// Why there is no place for a BAR, or no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Empty, or beyond the end of the address space.
    #[error("{start:#x} with {size:#x} bytes is no window for BARs")]
    Range {
        /// Its first address.
        start: u64,
        /// Its length.
        size: u64,
    },
    /// All is taken, or not by enough at one place.
    #[error("no {size:#x} bytes are left in the window for BARs")]
    Full {
        /// What was asked for.
        size: u64,
    },
}

/// A range of guest-physical addresses that only BARs have. Software may move a BAR to any place in it; the allocations
/// are where BARs are when software finds them.
#[derive(Debug)]
pub struct BarWindow {
    range: Range<u64>,
    allocator: Mutex<AddressAllocator>,
}

impl BarWindow {
    /// The `size` addresses from `start` on.
    ///
    /// # Errors
    /// [`WindowError::Range`].
    pub fn new(start: u64, size: u64) -> Result<Self, WindowError> {
        let error = WindowError::Range { start, size };
        let end = start.checked_add(size).ok_or(error)?;
        let allocator = AddressAllocator::new(start, size).map_err(|_| error)?;
        Ok(Self { range: start..end, allocator: Mutex::new(allocator) })
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Whether all `size` addresses from `start` on are in it.
    #[must_use]
    pub fn contains(&self, start: u64, size: u64) -> bool {
        start >= self.range.start && start.checked_add(size).is_some_and(|end| end <= self.range.end)
    }

    /// A place for a BAR of `size` bytes, at a multiple of its size.
    pub(super) fn allocate(self: &Arc<Self>, size: u64) -> Result<Place, WindowError> {
        let place = lock(&self.allocator).allocate(size, size, AllocPolicy::FirstMatch);
        let range = place.map_err(|_| WindowError::Full { size })?;
        Ok(Place { window: Arc::clone(self), range })
    }
}

/// Where a BAR is when software finds it. Dropped, another can have the place.
#[derive(Debug)]
pub(super) struct Place {
    window: Arc<BarWindow>,
    range: RangeInclusive,
}

impl Place {
    pub(super) fn start(&self) -> u64 {
        self.range.start()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = lock(&self.window.allocator).free(&self.range) {
            tracing::error!(start = self.start(), %error, "a place for a BAR cannot be given back");
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn places_are_aligned_to_their_size_and_can_be_had_again() {
        let window = Arc::new(BarWindow::new(0xc000_1000, 0x1_0000).unwrap());
        let first = window.allocate(0x4000).unwrap();
        let second = window.allocate(0x1000).unwrap();
        assert_eq!((first.start() % 0x4000, second.start() % 0x1000), (0, 0));
        assert!(window.contains(first.start(), 0x4000) && window.contains(second.start(), 0x1000));
        let rest: Vec<_> = std::iter::from_fn(|| window.allocate(0x4000).ok()).collect();
        assert_eq!(
            (rest.len(), window.allocate(0x4000).err()),
            (2, Some(WindowError::Full { size: 0x4000 }))
        );
        let start = first.start();
        drop(first);
        assert_eq!(window.allocate(0x4000).unwrap().start(), start);
    }

    #[test]
    fn a_range_that_passes_an_edge_is_not_in_the_window() {
        let window = BarWindow::new(0xc000_0000, 0x1000).unwrap();
        assert!(window.contains(0xc000_0000, 0x1000));
        for (start, size) in [(0xbfff_fff0, 0x20), (0xc000_0000, 0x1001), (u64::MAX - 15, 16), (0, 16)] {
            assert!(!window.contains(start, size), "{start:#x}");
        }
        assert!(BarWindow::new(u64::MAX, 2).is_err() && BarWindow::new(0, 0).is_err());
    }
}
