//! `InFlight`: which chains of a queue were taken and not yet used.

/// One bit a descriptor that may be the first of a chain.
pub(super) struct InFlight {
    words: Box<[u64]>,
    count: usize,
}

impl InFlight {
    pub(super) fn new(size: u16) -> Self {
        Self { words: vec![0; usize::from(size).div_ceil(64)].into(), count: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether `head` was not in flight; now it is. One that no queue of this size has never is.
    pub(super) fn insert(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.find(head) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        self.count = self.count.saturating_add(usize::from(new));
        new
    }

    /// Whether `head` was in flight; now it is not.
    pub(super) fn remove(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.find(head) else { return false };
        let there = *word & bit != 0;
        *word &= !bit;
        self.count = self.count.saturating_sub(usize::from(there));
        there
    }

    fn find(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        let word = self.words.get_mut(usize::from(head / 64))?;
        Some((word, 1 << (head % 64)))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_heads(steps in prop::collection::vec((any::<bool>(), 0..128_u16), 0..300)) {
            let (mut in_flight, mut expected) = (InFlight::new(128), BTreeSet::new());
            for (add, head) in steps {
                if add {
                    prop_assert_eq!(in_flight.insert(head), expected.insert(head));
                } else {
                    prop_assert_eq!(in_flight.remove(head), expected.remove(&head));
                }
                prop_assert_eq!(in_flight.count(), expected.len());
            }
        }
    }

    #[test]
    fn what_is_beyond_the_queue_never_is_in_flight() {
        let mut in_flight = InFlight::new(64);
        assert!(!in_flight.insert(64) && !in_flight.remove(64) && !in_flight.insert(u16::MAX));
    }
}
