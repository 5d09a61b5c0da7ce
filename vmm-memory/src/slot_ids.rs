//! `SlotIds`: the slot numbers of a VM, each of which is used again when it is free.

use std::collections::BTreeSet;

/// Numbers from 0 up to a limit.
#[derive(Debug)]
pub(crate) struct SlotIds {
    limit: u32,
    /// No number from here on has been taken yet.
    next: u32,
    /// Numbers below `next` that are free.
    free: BTreeSet<u32>,
}

impl SlotIds {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, next: 0, free: BTreeSet::new() }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// The lowest number that is free; `None`: all are taken.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        let id = self.next;
        if id >= self.limit {
            return None;
        }
        self.next = id.checked_add(1)?;
        Some(id)
    }

    pub(crate) fn give_back(&mut self, id: u32) {
        self.free.insert(id);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_taken_and_none_beyond_the_limit() {
        let mut ids = SlotIds::new(3);
        assert_eq!([(); 4].map(|()| ids.take()), [Some(0), Some(1), Some(2), None]);
        ids.give_back(2);
        ids.give_back(0);
        assert_eq!([(); 3].map(|()| ids.take()), [Some(0), Some(2), None]);
    }
}
