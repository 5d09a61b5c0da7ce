//! `Partials`: which pages of the host are in the balloon in part, where the host has larger pages than the driver counts in. Pure.
//!
//! A page of the host can be given back only as a whole. What of it is in the balloon is noted, a bit for 4 KiB, until all of it is.
//! That takes at most a bit for each 4 KiB of guest RAM, and a little for each page of the host.

use std::collections::BTreeMap;
use std::ops::Range;

/// Pages of the host of which something is in the balloon, by their guest-physical address.
#[derive(Debug, Default)]
pub(super) struct Partials {
    pages: BTreeMap<u64, HostPage>,
    /// How many pages of 4 KiB are in the balloon beside others of the same page of the host that are not.
    waiting: u64,
}

#[derive(Debug)]
struct HostPage {
    bits: Box<[u64]>,
    /// Bits that are set, and that there are.
    count: u64,
    size: u64,
}

impl Partials {
    /// Notes that of the page of the host at `address`, which has `size` of them, these are in the balloon; whether all are since
    /// now.
    pub(super) fn put_in(&mut self, address: u64, range: Range<u64>, size: u64) -> bool {
        let page = self.pages.entry(address).or_insert_with(|| HostPage::new(size));
        let before = page.waiting();
        let was_whole = page.is_whole();
        range.for_each(|index| page.set(index));
        self.waiting = self.waiting.saturating_sub(before).saturating_add(page.waiting());
        page.is_whole() && !was_whole
    }

    /// Notes that these are not in the balloon.
    pub(super) fn take_out(&mut self, address: u64, range: Range<u64>) {
        let Some(page) = self.pages.get_mut(&address) else { return };
        let before = page.waiting();
        range.for_each(|index| page.clear(index));
        self.waiting = self.waiting.saturating_sub(before).saturating_add(page.waiting());
        if page.count == 0 {
            self.pages.remove(&address);
        }
    }

    /// Pages of 4 KiB that are in the balloon and wait for those beside them.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }
}

impl HostPage {
    fn new(size: u64) -> Self {
        let words = usize::try_from(size.div_ceil(64)).unwrap_or(0);
        Self { bits: vec![0; words].into(), count: 0, size }
    }

    fn is_whole(&self) -> bool {
        self.count == self.size
    }

    fn waiting(&self) -> u64 {
        if self.is_whole() { 0 } else { self.count }
    }

    fn set(&mut self, index: u64) {
        if let Some((word, bit)) = self.find(index)
            && *word & bit == 0
        {
            *word |= bit;
            self.count = self.count.saturating_add(1);
        }
    }

    fn clear(&mut self, index: u64) {
        if let Some((word, bit)) = self.find(index)
            && *word & bit != 0
        {
            *word &= !bit;
            self.count = self.count.saturating_sub(1);
        }
    }

    fn find(&mut self, index: u64) -> Option<(&mut u64, u64)> {
        if index >= self.size {
            return None;
        }
        let word = self.bits.get_mut(usize::try_from(index / 64).ok()?)?;
        Some((word, 1 << (index % 64)))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 512;

    #[test]
    fn a_page_of_the_host_is_whole_when_the_last_part_comes_and_once() {
        let mut partials = Partials::default();
        assert!(!partials.put_in(0, 0..511, SIZE));
        assert_eq!(partials.waiting(), 511);
        assert!(!partials.put_in(SIZE, 511..512, SIZE));
        assert!(partials.put_in(0, 500..512, SIZE));
        assert_eq!(partials.waiting(), 1);
        assert!(!partials.put_in(0, 0..512, SIZE));
        partials.take_out(0, 7..8);
        assert_eq!(partials.waiting(), 512);
        assert!(partials.put_in(0, 7..8, SIZE));
        partials.take_out(0, 0..512);
        partials.take_out(SIZE, 0..512);
        assert!(partials.waiting() == 0 && partials.pages.is_empty());
        assert!(partials.put_in(0, 0..SIZE, SIZE));
    }

    proptest! {
        #[test]
        fn it_is_a_set_that_knows_whole_pages(
            steps in prop::collection::vec((any::<bool>(), 0..3_u64, 0..70_u64, 0..70_u64), 0..200),
        ) {
            // Pages of 70: more than a word.
            let (mut partials, mut expected) = (Partials::default(), BTreeSet::new());
            let count = |set: &BTreeSet<(u64, u64)>, page| set.iter().filter(|(of, _)| *of == page).count();
            for (put, page, start, length) in steps {
                let range = start..(start + length).min(70);
                let was_whole = count(&expected, page) == 70;
                if put {
                    expected.extend(range.clone().map(|index| (page, index)));
                    let whole = partials.put_in(page, range, 70);
                    prop_assert_eq!(whole, count(&expected, page) == 70 && !was_whole);
                } else {
                    range.clone().for_each(|index| _ = expected.remove(&(page, index)));
                    partials.take_out(page, range);
                }
                let waiting: usize = (0..3).map(|page| count(&expected, page)).filter(|count| *count != 70).sum();
                prop_assert_eq!(partials.waiting(), waiting as u64);
            }
        }
    }
}
