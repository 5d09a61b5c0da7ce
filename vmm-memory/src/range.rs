//! `RamRange`: a range of guest-physical addresses.

use std::fmt;

use crate::PAGE;

/// A range of guest-physical addresses that is backed by RAM, or to be backed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RamRange {
    /// First guest-physical address, a multiple of 4096.
    pub start: u64,
    /// Length in bytes, a multiple of 4096, not 0.
    pub size: u64,
}

impl RamRange {
    /// The first address behind it; `None` if that is none.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.start.checked_add(self.size)
    }

    /// Whether it is made of whole pages, at least one, and has an end.
    pub(crate) fn is_whole_pages(&self) -> bool {
        let whole = |value: u64| value.is_multiple_of(PAGE);
        whole(self.start) && whole(self.size) && self.size != 0 && self.end().is_some()
    }

    /// Whether the two have an address in common. Both have an end.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let starts_before_end = |one: &Self, other: &Self| other.end().is_none_or(|end| one.start < end);
        starts_before_end(self, other) && starts_before_end(other, self)
    }
}

/// For messages: `0x1000 bytes at 0x8000`.
impl fmt::Display for RamRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at {:#x}", self.size, self.start)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn range(start: u64, size: u64) -> RamRange {
        RamRange { start, size }
    }

    #[test]
    fn only_whole_pages_inside_the_address_space_pass() {
        assert!(range(0, PAGE).is_whole_pages());
        assert!(range(u64::MAX - 2 * PAGE + 1, PAGE).is_whole_pages());
        for (start, size) in [(0, 0), (1, PAGE), (0, PAGE + 1), (u64::MAX - PAGE + 1, 2 * PAGE)] {
            assert!(!range(start, size).is_whole_pages(), "{start:#x} {size:#x}");
        }
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!range(0, 2 * PAGE).overlaps(&range(2 * PAGE, PAGE)));
        assert!(range(0, 2 * PAGE).overlaps(&range(PAGE, PAGE)));
        assert!(range(PAGE, PAGE).overlaps(&range(0, 4 * PAGE)));
    }
}
