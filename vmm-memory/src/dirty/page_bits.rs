//! `PageBits`: a set of pages of a slot, a bit each, in the form in which KVM has them.

/// See the module documentation. Without words nothing is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageBits(Vec<u64>);

/// Where the bit of `page` is.
fn place(page: u64) -> (usize, u64) {
    let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
    (word, 1 << (page % 64))
}

/// Words for so many pages.
fn words(pages: u64) -> usize {
    usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX)
}

impl PageBits {
    /// All of so many pages, and no bit beyond.
    pub(super) fn set_all(&mut self, pages: u64) {
        self.0.clear();
        self.0.resize(words(pages), u64::MAX);
        let (_, first_beyond) = place(pages);
        if first_beyond != 1
            && let Some(last) = self.0.last_mut()
        {
            *last = first_beyond.wrapping_sub(1);
        }
    }

    /// One of so many pages; one beyond is left out.
    pub(super) fn set(&mut self, page: u64, pages: u64) {
        if page < pages {
            if self.0.is_empty() {
                self.0.resize(words(pages), 0);
            }
            let (word, bit) = place(page);
            if let Some(word) = self.0.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Adds what is in `other`, a set of pages of the same slot.
    pub(super) fn merge(&mut self, other: Vec<u64>) {
        if other.iter().all(|word| *word == 0) {
            return;
        }
        if self.0.is_empty() {
            self.0 = other;
        } else {
            self.0.iter_mut().zip(other).for_each(|(word, other)| *word |= other);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes all out; empty if there are none.
    pub(super) fn take(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn all_pages_are_all_and_none_beyond() {
        let mut bits = PageBits::default();
        for (pages, words) in [(1, vec![1]), (64, vec![u64::MAX]), (66, vec![u64::MAX, 3])] {
            bits.set_all(pages);
            assert_eq!(bits.take(), words);
        }
    }

    #[test]
    fn a_page_beyond_the_slot_is_left_out() {
        let mut bits = PageBits::default();
        bits.set(66, 66);
        assert!(bits.0.is_empty());
        bits.set(65, 66);
        bits.merge(vec![1, 0]);
        assert_eq!(bits.take(), [1, 2]);
    }
}
