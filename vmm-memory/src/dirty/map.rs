//! `DirtyMap`: which pages of the guest's memory have been written to by others than the guest.
//!
//! A writer writes, passes the light half of a fence and looks whether it has to mark the page. Whoever starts the tracking
//! says so and passes the heavy half: what was written without a mark, he sees. While nothing is tracked a write costs
//! one load and one branch more.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vmm_core::LightFence;

use super::page_bits::PageBits;
use crate::PAGE;

/// The pages of one [`HostMemory`](crate::HostMemory), whatever is made of it. Part of the type of each access to guest RAM, for vm-memory marks what it writes: after the
/// write. Who has the kernel write (a read from a file into a region that is pinned) or writes by atomics marks by himself,
/// when it is done.
#[derive(Debug)]
pub struct DirtyMap {
    active: AtomicBool,
    fence: LightFence,
    /// A bit a page, there since tracking was started for the first time.
    words: OnceLock<Box<[AtomicU64]>>,
    pages: u64,
}

/// Which bits of which word stand for pages `first` to `end`, word by word.
fn masks(Range { start: first, end }: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    (first / 64..end.div_ceil(64)).map(move |word| {
        let in_word = |page: u64| page.saturating_sub(word.saturating_mul(64)).min(64);
        let below = |bit: u64| u64::MAX.checked_shr(u32::try_from(64_u64.saturating_sub(bit)).unwrap_or(64));
        (word, below(in_word(end)).unwrap_or(0) & !below(in_word(first)).unwrap_or(0))
    })
}

impl DirtyMap {
    /// Of so many bytes, not tracked.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            active: AtomicBool::new(false),
            fence: LightFence::new(),
            words: OnceLock::new(),
            pages: bytes.div_ceil(PAGE),
        }
    }

    /// From here on writes are marked, as soon as the caller has passed the heavy half of the fence. Marks of an earlier time
    /// may still be there.
    pub(crate) fn start(&self) {
        self.words.get_or_init(|| (0..self.pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
        // Pairs with the load in `mark_dirty`: who sees it sees the words.
        self.active.store(true, Ordering::Release);
    }

    pub(super) fn stop(&self) {
        self.active.store(false, Ordering::Relaxed);
    }

    /// The words that have bits of `pages`, and which bits.
    fn words_of(&self, pages: Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64, u64)> {
        let words = self.words.get().map_or(&[][..], |words| words);
        let end = pages.end.min(self.pages);
        let masks = masks(pages.start.min(end)..end);
        masks.filter_map(|(number, mask)| Some((words.get(usize::try_from(number).ok()?)?, number, mask)))
    }

    /// Moves the marks of the part `pages` into `bits`, in which its first page is number 0.
    pub(super) fn take_into(&self, part: Range<u64>, bits: &mut PageBits) {
        let count = part.end.saturating_sub(part.start);
        for (word, number, mask) in self.words_of(part.clone()) {
            if word.load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            // Who finds the mark finds what was written before it.
            let marked = word.fetch_and(!mask, Ordering::AcqRel) & mask;
            let is_marked = |bit: &u64| marked & 1 << bit != 0;
            for bit in (0..64).filter(is_marked) {
                let page = number.saturating_mul(64).saturating_add(bit);
                bits.set(page.saturating_sub(part.start), count);
            }
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyMap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyMap {
    #[inline]
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.fence.pass();
        if self.active.load(Ordering::Acquire) {
            self.mark(offset as u64, length as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset as u64 / PAGE;
        let mut words = self.words_of(page..page.saturating_add(1));
        words.any(|(word, _, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl DirtyMap {
    #[cold]
    fn mark(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).div_ceil(PAGE);
        let pages = if length == 0 { 0..0 } else { offset / PAGE..end };
        for (word, _, mask) in self.words_of(pages) {
            word.fetch_or(mask, Ordering::Release);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_written_while_it_is_tracked_is_marked() {
        let map = DirtyMap::new(70 * PAGE);
        let taken = || {
            let mut bits = PageBits::default();
            map.take_into(0..70, &mut bits);
            bits.take()
        };
        map.mark_dirty(0, 1);
        map.start();
        map.slice_at(4096).mark_dirty(4095, 2);
        assert!(!map.dirty_at(0) && map.dirty_at(4096));
        assert_eq!(taken(), [0b110, 0]);
        map.mark_dirty(69 * 4096, 4096);
        map.stop();
        map.mark_dirty(0, 1);
        assert_eq!(taken(), [0, 1 << 5]);
        map.start();
        assert!(taken().is_empty());
    }

    #[test]
    fn a_part_has_its_own_pages_and_leaves_the_others() {
        let map = DirtyMap::new(300 * PAGE);
        map.start();
        for page in [0, 63, 64, 99, 100, 190, 199, 200, 299] {
            map.mark_dirty(page * 4096 + 7, 4090);
        }
        map.mark_dirty(299 * 4096, usize::MAX);
        map.mark_dirty(5 * 4096, 0);
        let taken = |part: Range<u64>| {
            let mut bits = PageBits::default();
            map.take_into(part.clone(), &mut bits);
            let words = bits.take();
            let is_set =
                |page: &u64| words.get(*page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 != 0);
            (0..part.end - part.start).filter(is_set).map(|page| page + part.start).collect::<Vec<_>>()
        };
        // Each mark goes over into the page after it.
        assert_eq!(taken(100..200), [100, 101, 190, 191, 199]);
        assert_eq!(taken(100..200), [0; 0]);
        assert_eq!(taken(0..100), [0, 1, 63, 64, 65, 99]);
        assert_eq!(taken(200..300), [200, 201, 299]);
    }
}
