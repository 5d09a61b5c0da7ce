//! `DirtyRing`: the ring in which KVM names the pages that one vCPU has written to.
//!
//! KVM stores the page of an entry and then, with release, the flag "dirty". The reader loads the flag with acquire, then the
//! page, and stores, with release, the flag "reset". `KVM_RESET_DIRTY_RINGS` loads that with acquire, protects the page
//! again and empties the entry, which is used anew from then on (the kernel's `virt/kvm/dirty_ring.c`). Entries are read
//! in their order, without a gap.
//!
//! A vCPU leaves the guest some entries before its ring is full, so that there is always an empty one. A KVM that lets it go
//! on all the same (KVM-PVM, which interprets many instructions at a time) names pages over those that nobody has read. The
//! kernel's places and ours are apart from then on, and nobody can say by how much: such a ring says "overrun" for good,
//! whoever reads it takes every page for written to, and its vCPU ends when KVM holds the ring for full.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// `KVM_DIRTY_GFN_F_DIRTY`: KVM has named a page.
const DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`: it has been read.
const RESET: u32 = 2;

/// `struct kvm_dirty_gfn`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct RingEntry {
    /// Pairs with KVM's accesses to the same word; see the module documentation.
    flags: AtomicU32,
    slot: AtomicU32,
    page: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<RingEntry>() == size_of::<kvm_bindings::kvm_dirty_gfn>());

/// A page that a vCPU has written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPage {
    /// The number of the slot.
    pub slot: u32,
    /// The number of the page in it.
    pub page: u64,
}

/// What is in the rings of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingItem {
    /// This page.
    Page(RingPage),
    /// KVM has overrun a ring: any page may have been written to.
    Overrun,
}

/// Memory shared with KVM, in which a vCPU's ring is.
pub trait RingMapping: Send {
    /// The whole ring.
    fn entries(&self) -> &[RingEntry];
}

/// One ring, and how far it has been read.
pub(super) struct DirtyRing {
    mapping: Box<dyn RingMapping>,
    next: usize,
    /// Pages that were read since its vCPU last found it full.
    taken: usize,
    overrun: bool,
}

impl DirtyRing {
    /// One that nobody has read from.
    pub(super) fn new(mapping: Box<dyn RingMapping>) -> Self {
        Self { mapping, next: 0, taken: 1, overrun: false }
    }

    /// Reads all that is there.
    pub(super) fn take_all(&mut self, each: &mut dyn FnMut(RingItem)) {
        let mut taken = 0;
        // No entry is used anew before it is reset, unless KVM overruns the ring.
        while taken < self.mapping.entries().len()
            && let Some(page) = self.take()
        {
            each(RingItem::Page(page));
            taken += 1;
        }
        self.taken = self.taken.saturating_add(taken);
        self.overrun |= taken == self.mapping.entries().len();
        if self.overrun {
            each(RingItem::Overrun);
        }
    }

    /// Whether there is something to read.
    pub(super) fn is_empty(&self) -> bool {
        self.mapping.entries().get(self.next).is_none_or(|entry| entry.flags.load(Ordering::Relaxed) != DIRTY)
    }

    /// Called when its vCPU cannot go on and the ring has been read. It never can if nothing was read since it was found full the
    /// last time: KVM counts entries that do not name a page.
    pub(super) fn was_full(&mut self) -> bool {
        std::mem::take(&mut self.taken) != 0 && !self.overrun
    }

    /// Reads the next page, if there is one. The page stays unprotected, and the entry full, until KVM is told to reset.
    pub(super) fn take(&mut self) -> Option<RingPage> {
        let entries = self.mapping.entries();
        let entry = entries.get(self.next)?;
        if entry.flags.load(Ordering::Acquire) != DIRTY {
            return None;
        }
        let slot = entry.slot.load(Ordering::Relaxed);
        let page = entry.page.load(Ordering::Relaxed);
        entry.flags.store(RESET, Ordering::Release);
        self.next += 1;
        if self.next == entries.len() {
            self.next = 0;
        }
        Some(RingPage { slot, page })
    }
}

/// KVM's side, for tests. It looks at the flags by operations that write, as loom takes back only what came just before a
/// write, and a look of the same thread would be that.
#[cfg(any(test, feature = "test-util"))]
impl RingEntry {
    /// Names a page; whether the entry was empty.
    pub fn name(&self, page: RingPage) -> bool {
        if self.flags.fetch_or(0, Ordering::Relaxed) != 0 {
            return false;
        }
        self.slot.store(page.slot, Ordering::Relaxed);
        self.page.store(page.page, Ordering::Relaxed);
        self.flags.store(DIRTY, Ordering::Release);
        true
    }

    /// Empties the entry; whether it had been read.
    pub fn reset(&self) -> bool {
        self.flags.compare_exchange(RESET, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A reader that must fail.
#[cfg(all(test, loom))]
impl RingEntry {
    /// Gives the entry back before it has looked at the page.
    pub(super) fn take_backwards(&self) -> Option<u64> {
        if self.flags.load(Ordering::Acquire) != DIRTY {
            return None;
        }
        self.flags.store(RESET, Ordering::Release);
        Some(self.page.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Shared(Arc<Vec<RingEntry>>);

    impl RingMapping for Shared {
        fn entries(&self) -> &[RingEntry] {
            &self.0
        }
    }

    fn page(page: u64) -> RingPage {
        RingPage { slot: 7, page }
    }

    #[test]
    fn pages_are_read_in_order_across_the_end_and_each_once() {
        let entries = Arc::new(Vec::from_iter((0..4).map(|_| RingEntry::default())));
        let mut ring = DirtyRing::new(Box::new(Shared(Arc::clone(&entries))));
        assert_eq!(ring.take(), None);
        let mut named = 0;
        for round in 0..3 {
            for _ in 0..3 {
                assert!(entries[named % 4].name(page(named as u64)));
                named += 1;
            }
            for number in 0..3 {
                assert_eq!(ring.take(), Some(page(3 * round + number)));
            }
            assert_eq!(ring.take(), None);
            assert_eq!(entries.iter().filter(|entry| entry.reset()).count(), 3);
        }
    }

    #[test]
    fn a_ring_that_was_overrun_says_so_for_good() {
        let entries = Arc::new(Vec::from_iter((0..4).map(|_| RingEntry::default())));
        let mut ring = DirtyRing::new(Box::new(Shared(Arc::clone(&entries))));
        let mut taken = |named: u64| {
            (0..named).for_each(|number| {
                let entry = &entries[number as usize % 4];
                entry.flags.store(0, Ordering::Relaxed);
                entry.name(page(number));
            });
            let mut items = Vec::new();
            ring.take_all(&mut |item| items.push(item));
            assert!(entries.iter().all(RingEntry::reset) || items == [RingItem::Overrun]);
            items
        };
        assert_eq!(taken(5).last(), Some(&RingItem::Overrun));
        assert_eq!(taken(0), [RingItem::Overrun]);
    }

    #[test]
    fn a_vcpu_goes_on_if_somebody_has_read_its_full_ring() {
        let entries = Arc::new(Vec::from_iter((0..4).map(|_| RingEntry::default())));
        let mut ring = DirtyRing::new(Box::new(Shared(Arc::clone(&entries))));
        // Somebody else was faster, and there is nothing to read any more.
        assert!(ring.is_empty() && ring.was_full());
        assert!(entries[0].name(page(1)) && !ring.is_empty());
        ring.take_all(&mut |_| ());
        assert!(ring.was_full());
        assert!(!ring.was_full(), "KVM takes a ring for full from which nothing can be read");
    }

    #[test]
    fn what_was_read_is_not_read_again_before_it_is_reset() {
        let entries = Arc::new(vec![RingEntry::default()]);
        let mut ring = DirtyRing::new(Box::new(Shared(Arc::clone(&entries))));
        assert!(entries[0].name(page(1)));
        assert!(ring.take().is_some() && ring.take().is_none());
        assert!(!entries[0].name(page(2)), "an entry that is not reset is full");
        assert!(entries[0].reset() && entries[0].name(page(2)));
        assert_eq!(ring.take(), Some(page(2)));
    }
}
