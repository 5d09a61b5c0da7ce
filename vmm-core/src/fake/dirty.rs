//! What `FakeVm` tracks of the guest's writes, as KVM does by each mechanism.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Weak;

use super::{FakeCall, FakeVm};
use crate::seam::{DirtyLog, MemorySlot};
use crate::{DirtyMechanism, IoctlError, RingCollector, RingFullError, RingItem, RingPage};

const PAGE: u64 = 4096;

/// Pages that were written to.
#[derive(Default)]
pub(super) struct Dirty {
    mechanism: DirtyMechanism,
    /// Of the bitmaps, or the pages that are not protected because a ring has them. By slot.
    pages: BTreeSet<(u32, u64)>,
    /// Of the bitmaps that are live.
    logged: BTreeSet<u32>,
    ring: Vec<RingPage>,
    /// It had too few entries.
    overrun: bool,
    /// What was read from it and not reset yet.
    read: Vec<RingPage>,
    collector: Option<Weak<dyn RingCollector>>,
}

impl fmt::Debug for Dirty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dirty").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl Dirty {
    /// A slot was created or changed.
    pub(super) fn follow(&mut self, slot: &MemorySlot) {
        if slot.size == 0 || !slot.log_dirty {
            self.logged.remove(&slot.id);
            self.pages.retain(|page| page.0 != slot.id);
        } else if self.logged.insert(slot.id)
            && self.mechanism == (DirtyMechanism::ManualProtect { initially_set: true })
        {
            self.pages.extend((0..slot.size / PAGE).map(|page| (slot.id, page)));
        }
    }

    fn write(&mut self, slot: &MemorySlot, page: u64) {
        let is_new = slot.log_dirty && self.pages.insert((slot.id, page));
        if is_new && matches!(self.mechanism, DirtyMechanism::Ring { .. }) {
            self.ring.push(RingPage { slot: slot.id, page });
        }
    }
}

impl FakeVm {
    /// Makes it a VM that tracks writes by `mechanism`.
    pub fn set_dirty_mechanism(&self, mechanism: DirtyMechanism) {
        self.state().dirty.mechanism = mechanism;
    }

    /// The guest writes at this address.
    ///
    /// # Panics
    /// There is no slot.
    pub fn guest_writes(&self, address: u64) {
        let slots = self.slots();
        let slot =
            slots.iter().find(|slot| (slot.guest_address..slot.guest_address + slot.size).contains(&address));
        let slot = slot.unwrap_or_else(|| unreachable!("the guest writes where it has memory"));
        self.state().dirty.write(slot, (address - slot.guest_address) / PAGE);
    }

    /// KVM names more pages than a ring has entries.
    pub fn overrun_ring(&self) {
        self.state().dirty.overrun = true;
    }

    /// A vCPU cannot go on, as its ring is full.
    ///
    /// # Errors
    /// Nobody empties it.
    pub fn ring_full(&self) -> Result<(), RingFullError> {
        let collector = self.state().dirty.collector.as_ref().and_then(Weak::upgrade);
        Ok(collector.ok_or(RingFullError::NoCollector)?.collect()?)
    }
}

impl DirtyLog for FakeVm {
    fn dirty_mechanism(&self) -> DirtyMechanism {
        self.state().dirty.mechanism
    }

    fn dirty_log(&self, slot: &MemorySlot) -> Result<Vec<u64>, IoctlError> {
        let mut state = self.state();
        state.record("KVM_GET_DIRTY_LOG", FakeCall::DirtyLog(slot.id))?;
        let mut words = vec![0; (slot.size / PAGE).div_ceil(64) as usize];
        for &(_, page) in state.dirty.pages.iter().filter(|page| page.0 == slot.id) {
            words[page as usize / 64] |= 1 << (page % 64);
        }
        if state.dirty.mechanism == DirtyMechanism::Bitmap {
            state.dirty.pages.retain(|page| page.0 != slot.id);
        }
        Ok(words)
    }

    fn clear_dirty_log(&self, slot: &MemorySlot, first: u64, pages: &[u64]) -> Result<(), IoctlError> {
        let mut state = self.state();
        state.record("KVM_CLEAR_DIRTY_LOG", FakeCall::ClearDirtyLog(slot.id, first))?;
        let is_named = |page: u64| {
            let number = page.checked_sub(first);
            let word = number.and_then(|number| Some((number, pages.get(number as usize / 64)?)));
            word.is_some_and(|(number, word)| word & 1 << (number % 64) != 0)
        };
        state.dirty.pages.retain(|&(id, page)| id != slot.id || !is_named(page));
        Ok(())
    }

    fn collect_rings(&self, each: &mut dyn FnMut(RingItem)) -> Result<(), IoctlError> {
        let mut state = self.state();
        // As with KVM: what was read from the rings is read, whether it can be reset or not.
        for page in std::mem::take(&mut state.dirty.ring) {
            each(RingItem::Page(page));
            state.dirty.read.push(page);
        }
        if std::mem::take(&mut state.dirty.overrun) {
            each(RingItem::Overrun);
        }
        state.record("KVM_RESET_DIRTY_RINGS", FakeCall::CollectRings)?;
        for page in std::mem::take(&mut state.dirty.read) {
            state.dirty.pages.remove(&(page.slot, page.page));
        }
        Ok(())
    }

    fn set_ring_collector(&self, collector: Weak<dyn RingCollector>) {
        self.state().dirty.collector = Some(collector);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: MemorySlot = MemorySlot {
        id: 0,
        guest_address: 0,
        size: 70 * PAGE,
        host_address: 0x10_0000,
        read_only: false,
        log_dirty: true,
    };

    fn tracking(mechanism: DirtyMechanism) -> FakeVm {
        let vm = FakeVm::default();
        vm.set_dirty_mechanism(mechanism);
        vm.state().slots.set(&SLOT).unwrap();
        vm.state().dirty.follow(&SLOT);
        vm
    }

    #[test]
    fn a_bitmap_is_clean_when_it_was_read() {
        let vm = tracking(DirtyMechanism::Bitmap);
        vm.guest_writes(65 * PAGE + 1);
        assert_eq!(vm.dirty_log(&SLOT).unwrap(), [0, 2]);
        assert_eq!(vm.dirty_log(&SLOT).unwrap(), [0, 0]);
    }

    #[test]
    fn a_manual_one_is_clean_where_it_was_cleared() {
        let vm = tracking(DirtyMechanism::ManualProtect { initially_set: false });
        vm.guest_writes(0);
        vm.guest_writes(69 * PAGE);
        vm.clear_dirty_log(&SLOT, 64, &[u64::MAX]).unwrap();
        assert_eq!(vm.dirty_log(&SLOT).unwrap(), [1, 0]);
        let vm = tracking(DirtyMechanism::ManualProtect { initially_set: true });
        assert_eq!(vm.dirty_log(&SLOT).unwrap(), [u64::MAX, 63]);
    }

    #[test]
    fn a_ring_names_a_page_once_until_it_is_collected() {
        let vm = tracking(DirtyMechanism::Ring { bytes: 4096 });
        let page = |page| RingItem::Page(RingPage { slot: 0, page });
        let collected = || {
            let mut pages = Vec::new();
            vm.collect_rings(&mut |item| pages.push(item)).unwrap();
            pages
        };
        [PAGE, PAGE, 0].into_iter().for_each(|address| vm.guest_writes(address));
        assert_eq!(collected(), [1, 0].map(page));
        vm.guest_writes(0);
        assert_eq!(collected(), [page(0)]);
        vm.overrun_ring();
        assert_eq!(collected(), [RingItem::Overrun]);
    }
}
