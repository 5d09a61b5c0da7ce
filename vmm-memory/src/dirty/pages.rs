//! `DirtyPages`: what a harvest has found in one range of guest RAM.

use crate::PAGE;
use crate::range::RamRange;

/// The pages of a range that have been written to; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyPages {
    range: RamRange,
    words: Vec<u64>,
}

impl DirtyPages {
    pub(super) fn new(range: RamRange, words: Vec<u64>) -> Self {
        Self { range, words }
    }

    /// The range.
    #[must_use]
    pub fn range(&self) -> RamRange {
        self.range
    }

    /// A bit for each page of 4096 bytes, the first page in the lowest bit of the first word.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many pages.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The guest-physical addresses of the pages, in order.
    pub fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        let words = (0_u64..).step_by(64).zip(&self.words);
        let pages = words.flat_map(|(first, &word)| {
            let is_set = move |bit: &u64| word & 1 << (bit % 64) != 0;
            (0..64).filter(is_set).map(move |bit| first.saturating_add(bit))
        });
        pages.map(|page| self.range.start.saturating_add(page.saturating_mul(PAGE)))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_bits() {
        let range = RamRange { start: 0x10_0000, size: 66 * PAGE };
        let pages = DirtyPages::new(range, vec![1 << 63 | 1, 2]);
        let addresses: Vec<_> = pages.addresses().collect();
        assert_eq!(addresses, [0x10_0000, 0x10_0000 + 63 * PAGE, 0x10_0000 + 65 * PAGE]);
        assert_eq!(pages.count(), 3);
    }
}
