//! The layout: which guest-physical ranges are RAM, and what occupies them.

use std::fmt;
use std::ops::Range;

use super::{E820Entry, E820Kind};

/// Bytes in a page.
pub(super) const PAGE: u64 = 0x1000;
/// Entries that every protocol can carry: `E820_MAX_ENTRIES_ZEROPAGE`.
const MAX_MAP_ENTRIES: usize = 128;
/// Where structures go by preference, from the address other loaders start at to the end of conventional memory…
const STRUCTURES: Range<u64> = 0x6000..0xa_0000;
/// … and, when that is full, the pages before it. Page 0 is never used: an address of 0 means "not present".
const SPARE: Range<u64> = PAGE..STRUCTURES.start;

/// What a range of guest-physical addresses holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// Not for the guest to use.
    Reserved,
    /// A kernel in one piece.
    Kernel,
    /// What the address fields of a Multiboot header describe.
    AddressFields,
    /// The kernel segment of this program header.
    Segment(usize),
    /// A structure of the boot protocol.
    Structure(&'static str),
    /// The initrd.
    Initrd,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved => write!(f, "a reserved range"),
            Self::Kernel => write!(f, "the kernel"),
            Self::AddressFields => write!(f, "load_addr to bss_end_addr"),
            Self::Segment(index) => write!(f, "program header {index}"),
            Self::Structure(name) => write!(f, "{name}"),
            Self::Initrd => write!(f, "the initrd"),
        }
    }
}

/// Why a range has no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// More entries than a boot protocol can carry.
    #[error("has {entries} entries; the limit is {MAX_MAP_ENTRIES}")]
    TooManyEntries {
        /// Number of entries.
        entries: usize,
    },
    /// An entry of the memory map is empty or wraps.
    #[error("entry {start:#x} + {size:#x} is empty or wraps")]
    BadEntry {
        /// First address.
        start: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Some of the range is not RAM.
    #[error("{start:#x}..{end:#x} is not inside one region of RAM (RAM ends at {ram_end:#x})")]
    NotRam {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// Address after the last byte of RAM.
        ram_end: u64,
    },
    /// Some of the range is taken.
    #[error("{start:#x}..{end:#x} overlaps {other} ({other_start:#x}..{other_end:#x})")]
    Overlap {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// What is there.
        other: Occupant,
        /// Its first address.
        other_start: u64,
        /// Its address after the last.
        other_end: u64,
    },
    /// No free range is large enough.
    #[error("no free RAM below {below:#x} for the {size:#x} bytes of {occupant}")]
    NoRoom {
        /// What was to be placed.
        occupant: Occupant,
        /// Length in bytes.
        size: u64,
        /// The address that its end must not pass.
        below: u64,
    },
}

/// RAM and its occupants. Occupied ranges never overlap.
#[derive(Debug)]
pub(super) struct Layout {
    /// Sorted by address.
    ram: Vec<Range<u64>>,
    taken: Vec<(Range<u64>, Occupant)>,
}

impl Layout {
    /// The RAM of `map`, with the reserved ranges taken.
    pub(super) fn new(map: &[E820Entry]) -> Result<Self, PlaceError> {
        if map.len() > MAX_MAP_ENTRIES {
            return Err(PlaceError::TooManyEntries { entries: map.len() });
        }
        let mut layout = Self { ram: Vec::new(), taken: Vec::new() };
        for &E820Entry { start, size, kind } in map {
            let end =
                start.checked_add(size).filter(|_| size > 0).ok_or(PlaceError::BadEntry { start, size })?;
            match kind {
                E820Kind::Ram => layout.ram.push(start..end),
                E820Kind::Reserved => layout.taken.push((start..end, Occupant::Reserved)),
            }
        }
        layout.ram.sort_unstable_by_key(|ram| ram.start);
        Ok(layout)
    }

    /// Takes `range`, which must be free and inside one RAM region.
    pub(super) fn claim(&mut self, range: Range<u64>, occupant: Occupant) -> Result<(), PlaceError> {
        let Range { start, end } = range;
        if !self.ram.iter().any(|ram| ram.start <= start && end <= ram.end) {
            let ram_end = self.ram.iter().map(|ram| ram.end).max().unwrap_or(0);
            return Err(PlaceError::NotRam { start, end, ram_end });
        }
        if let Some((taken, other)) = self.overlapping(&range) {
            return Err(PlaceError::Overlap {
                start,
                end,
                other: *other,
                other_start: taken.start,
                other_end: taken.end,
            });
        }
        self.taken.push((range, occupant));
        Ok(())
    }

    /// Takes the lowest free `size` bytes of conventional memory at a multiple of `align`; gives their address.
    pub(super) fn lowest(&mut self, size: u64, align: u64, name: &'static str) -> Result<u32, PlaceError> {
        let occupant = Occupant::Structure(name);
        let (address, range) = [STRUCTURES, SPARE]
            .iter()
            .find_map(|window| self.first_fit(size, align, window))
            .and_then(|range| Some((u32::try_from(range.start).ok()?, range)))
            .ok_or(PlaceError::NoRoom { occupant, size, below: STRUCTURES.end })?;
        self.taken.push((range, occupant));
        Ok(address)
    }

    /// Takes the lowest free `size` bytes of `window` at a multiple of `align`.
    pub(super) fn lowest_in(
        &mut self,
        window: &Range<u64>,
        size: u64,
        align: u64,
        occupant: Occupant,
    ) -> Result<Range<u64>, PlaceError> {
        let range = self.first_fit(size, align, window).ok_or(PlaceError::NoRoom {
            occupant,
            size,
            below: window.end,
        })?;
        self.taken.push((range.clone(), occupant));
        Ok(range)
    }

    /// Takes the highest free `size` bytes, from a page boundary on, that end at or below `below`.
    pub(super) fn highest(
        &mut self,
        size: u64,
        below: u64,
        occupant: Occupant,
    ) -> Result<Range<u64>, PlaceError> {
        let range = self.last_fit(size, below).ok_or(PlaceError::NoRoom { occupant, size, below })?;
        self.taken.push((range.clone(), occupant));
        Ok(range)
    }

    fn overlapping(&self, range: &Range<u64>) -> Option<&(Range<u64>, Occupant)> {
        self.taken.iter().find(|(taken, _)| taken.start < range.end && range.start < taken.end)
    }

    fn first_fit(&self, size: u64, align: u64, window: &Range<u64>) -> Option<Range<u64>> {
        self.ram.iter().find_map(|ram| {
            let limit = ram.end.min(window.end);
            let mut start = ram.start.max(window.start);
            loop {
                start = start.checked_next_multiple_of(align)?;
                let end = start.checked_add(size).filter(|end| *end <= limit)?;
                match self.overlapping(&(start..end)) {
                    None => return Some(start..end),
                    Some((taken, _)) => start = taken.end,
                }
            }
        })
    }

    fn last_fit(&self, size: u64, below: u64) -> Option<Range<u64>> {
        self.ram.iter().rev().find_map(|ram| {
            let floor = ram.start.max(PAGE);
            let mut end = ram.end.min(below);
            loop {
                let start = end.checked_sub(size)? / PAGE * PAGE;
                let range = start..start + size;
                match self.overlapping(&range) {
                    _ if start < floor => return None,
                    None => return Some(range),
                    Some((taken, _)) => end = taken.start,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn entry(start: u64, size: u64, kind: E820Kind) -> E820Entry {
        E820Entry { start, size, kind }
    }

    /// 640 KiB of conventional memory with a reserved last KiB, and 1 MiB of RAM from 1 MiB on.
    fn layout() -> Layout {
        Layout::new(&[
            entry(0x10_0000, 0x10_0000, E820Kind::Ram),
            entry(0, 0xa_0000, E820Kind::Ram),
            entry(0x9_fc00, 0x400, E820Kind::Reserved),
        ])
        .unwrap()
    }

    #[test]
    fn a_range_is_claimed_only_inside_one_region_of_ram() {
        assert_eq!(layout().claim(0x10_0000..0x20_0000, Occupant::Segment(0)), Ok(()));
        for range in [0x10_0000..0x20_0001, 0x9_0000..0x11_0000, 0xf_ffff..0x10_0001, u64::MAX - 1..u64::MAX]
        {
            let expected = PlaceError::NotRam { start: range.start, end: range.end, ram_end: 0x20_0000 };
            assert_eq!(layout().claim(range, Occupant::Segment(0)), Err(expected));
        }
    }

    #[test]
    fn a_taken_byte_is_not_given_again_and_its_neighbours_are() {
        let mut layout = layout();
        layout.claim(0x10_1000..0x10_2000, Occupant::Segment(0)).unwrap();
        for range in [0x10_1fff..0x10_3000, 0x10_0000..0x10_1001, 0x10_1800..0x10_1801, 0x10_0000..0x20_0000]
        {
            let error = layout.claim(range, Occupant::Segment(1)).unwrap_err();
            assert!(matches!(error, PlaceError::Overlap { other: Occupant::Segment(0), .. }), "{error}");
        }
        layout.claim(0x10_2000..0x10_3000, Occupant::Segment(1)).unwrap();
        layout.claim(0x10_0000..0x10_1000, Occupant::Segment(2)).unwrap();
    }

    #[test]
    fn structures_start_at_0x6000_and_step_over_what_is_there() {
        let mut layout = layout();
        assert_eq!(layout.lowest(0x20, 8, "a"), Ok(0x6000));
        assert_eq!(layout.lowest(0x1000, PAGE, "b"), Ok(0x7000));
        assert_eq!(layout.lowest(0x20, 8, "c"), Ok(0x6020));
    }

    #[test]
    fn structures_fall_back_to_the_pages_below_0x6000_but_never_to_page_0() {
        let mut layout = layout();
        layout.claim(0x6000..0x9_fc00, Occupant::Segment(0)).unwrap();
        assert_eq!(layout.lowest(0x5000, 8, "a"), Ok(0x1000));
        let expected =
            PlaceError::NoRoom { occupant: Occupant::Structure("b"), size: 1, below: STRUCTURES.end };
        assert_eq!(layout.lowest(1, 1, "b"), Err(expected));
    }

    #[test]
    fn structures_keep_out_of_a_reserved_range() {
        let mut layout = layout();
        layout.claim(0x1000..0x9_f000, Occupant::Segment(0)).unwrap();
        assert_eq!(layout.lowest(0xc00, 8, "a"), Ok(0x9_f000));
        assert!(layout.lowest(1, 1, "b").is_err());
    }

    #[test]
    fn the_highest_range_ends_at_the_limit_or_below_what_is_there() {
        let mut layout = layout();
        assert_eq!(layout.highest(0x1000, u64::MAX, Occupant::Initrd), Ok(0x1f_f000..0x20_0000));
        assert_eq!(layout.highest(0x1800, u64::MAX, Occupant::Initrd), Ok(0x1f_d000..0x1f_e800));
        assert_eq!(layout.highest(0x10, 0x18_0010, Occupant::Initrd), Ok(0x18_0000..0x18_0010));
        assert_eq!(layout.highest(0xf_0000, u64::MAX, Occupant::Initrd).ok(), None);
        assert_eq!(layout.highest(0x9_e000, u64::MAX, Occupant::Initrd), Ok(0x1000..0x9_f000));
    }

    #[test]
    fn the_highest_range_never_holds_page_0() {
        let mut layout = layout();
        assert_eq!(layout.highest(0x1000, 0x2000, Occupant::Initrd), Ok(0x1000..0x2000));
        let expected = PlaceError::NoRoom { occupant: Occupant::Initrd, size: 0x10, below: 0x1000 };
        assert_eq!(layout.highest(0x10, 0x1000, Occupant::Initrd), Err(expected));
    }

    #[test]
    fn a_map_with_an_empty_or_wrapping_entry_is_refused() {
        for (start, size) in [(0x1000, 0), (u64::MAX, 1), (2, u64::MAX)] {
            let error = Layout::new(&[entry(start, size, E820Kind::Ram)]).unwrap_err();
            assert_eq!(error, PlaceError::BadEntry { start, size });
        }
    }

    #[test]
    fn a_map_has_at_most_128_entries() {
        let map = vec![entry(0, 0x1000, E820Kind::Reserved); 129];
        assert_eq!(Layout::new(&map).unwrap_err(), PlaceError::TooManyEntries { entries: 129 });
        assert!(Layout::new(&map[1..]).is_ok());
    }
}
