//! `DirtyTracker`: knows which pages of guest RAM have been written to since it was last asked.
//!
//! It stands between the address space and the VM, so it sees each slot that is made or deleted, and marks slots for KVM to
//! track; and it observes the address space, so it knows the map of what devices write behind each slot. What KVM, its
//! rings and those maps tell is gathered slot by slot, and stays there until a harvest has succeeded.
//!
//! Pages are known by the slot that they are in. A slot that is made anew while tracking goes on is dirty as a whole: RAM
//! that has come, moved, been replaced or protected, or come back because a change has failed.
//!
//! Lock order: `state`, in it those of the VM. No reader of guest RAM takes it; the address space does, for the time of one
//! ioctl that KVM serializes with the others anyway, and a vCPU whose ring is full.
#![expect(unsafe_code, reason = "passes on the seam through which the guest is shown memory")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use vmm_core::seam::{DirtyLog, MemorySlot, MemorySlots};
use vmm_core::{DirtyMechanism, IoctlError, LogLimit, RingCollector, RingItem, heavy_fence};

use super::map::DirtyMap;
use super::page_bits::PageBits;
use super::pages::DirtyPages;
use crate::PAGE;
use crate::address_space::AddressSpace;
use crate::change::ChangeError;
use crate::observer::{MemoryObserver, ObserverError};
use crate::range::RamRange;
use crate::region::RamRegion;
use crate::sync::{Mutex, lock};

/// Pages that are cleared by one ioctl, during which KVM holds up vCPUs that fault: 1 GiB.
const CLEARED_AT_ONCE: usize = 1 << 18;

/// Why dirty pages cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// Nothing is tracked.
    #[error("dirty pages are not tracked")]
    NotTracking,
    /// KVM does not start or stop tracking a range.
    #[error("cannot change the tracking of {range}")]
    Slot {
        /// The range.
        range: RamRange,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
    /// KVM does not say what was written to. What it has said so far is in the next harvest.
    #[error("cannot read the dirty log of {range}")]
    Log {
        /// The range.
        range: RamRange,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
    /// The rings cannot be emptied. What was in them is in the next harvest.
    #[error("cannot empty the dirty rings")]
    Rings(#[source] IoctlError),
}

/// See the module documentation. Every method may be called from any thread.
pub struct DirtyTracker {
    vm: Arc<dyn DirtyLog>,
    state: Mutex<State>,
    overruns: LogLimit,
}

#[derive(Default)]
struct State {
    tracking: bool,
    /// The slots that exist, by number.
    slots: BTreeMap<u32, Tracked>,
    /// What devices write, by the guest-physical address at which the region is, or is about to be.
    maps: BTreeMap<u64, Part>,
}

/// The part of a map that belongs to a region.
struct Part {
    map: Arc<DirtyMap>,
    pages: Range<u64>,
}

impl Part {
    fn of(region: &RamRegion) -> Self {
        let block = region.block();
        let first = block.offset() / PAGE;
        let pages = first..first.saturating_add(region.range().size / PAGE);
        Self { map: Arc::clone(block.memory().dirty()), pages }
    }

    fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.map, &other.map) && self.pages == other.pages
    }
}

/// A slot.
struct Tracked {
    slot: MemorySlot,
    /// Pages that are in no harvest yet.
    pending: PageBits,
}

impl Tracked {
    fn pages(&self) -> u64 {
        self.slot.size / PAGE
    }

    fn range(&self) -> RamRange {
        RamRange { start: self.slot.guest_address, size: self.slot.size }
    }
}

impl DirtyTracker {
    /// An address space of `vm` without RAM, and what tracks it, by the mechanism that `vm` was made with.
    ///
    /// # Errors
    /// See [`AddressSpace::add_observer`].
    pub fn track(vm: Arc<dyn DirtyLog>) -> Result<(AddressSpace, Arc<Self>), ChangeError> {
        let tracker = Arc::new(Self { vm, state: Mutex::default(), overruns: LogLimit::default() });
        let collector: Weak<Self> = Arc::downgrade(&tracker);
        tracker.vm.set_ring_collector(collector);
        let space = AddressSpace::new(Arc::clone(&tracker) as Arc<dyn MemorySlots>);
        space.add_observer(Arc::clone(&tracker) as Arc<dyn MemoryObserver>)?;
        Ok((space, tracker))
    }

    /// How the guest's writes are tracked.
    #[must_use]
    pub fn mechanism(&self) -> DirtyMechanism {
        self.vm.dirty_mechanism()
    }

    /// Starts tracking, while the guest and its devices go on. What is written after it has returned is in a harvest; with
    /// a bitmap that is [initially set](DirtyMechanism::ManualProtect), the first harvest has all pages. Tracking already is
    /// fine.
    ///
    /// # Errors
    /// [`DirtyError::Slot`]; nothing is tracked then.
    pub fn start(&self) -> Result<(), DirtyError> {
        let mut state = lock(&self.state);
        if state.tracking {
            return Ok(());
        }
        if self.has_rings() {
            // Of an earlier time.
            self.vm.collect_rings(&mut |_| ()).map_err(DirtyError::Rings)?;
        }
        for part in state.maps.values() {
            // Of an earlier time, too.
            part.map.take_into(part.pages.clone(), &mut PageBits::default());
            part.map.start();
        }
        heavy_fence();
        state.tracking = true;
        let mut slots = state.slots.values_mut();
        let started = slots.try_for_each(|tracked| {
            tracked.pending.clear();
            self.log(tracked, true)
        });
        started.inspect_err(|_| {
            if let Err(error) = self.end(&mut state) {
                tracing::error!(%error, "KVM goes on tracking pages for nobody");
            }
        })
    }

    /// Stops tracking, while the guest goes on, and forgets what was not harvested. Not tracking is fine.
    ///
    /// # Errors
    /// [`DirtyError::Slot`], of the first slot that KVM goes on tracking, which costs time and nothing else.
    pub fn stop(&self) -> Result<(), DirtyError> {
        self.end(&mut lock(&self.state))
    }

    fn end(&self, state: &mut State) -> Result<(), DirtyError> {
        let mut result = Ok(());
        state.tracking = false;
        state.maps.values().for_each(|part| part.map.stop());
        for tracked in state.slots.values_mut() {
            tracked.pending.clear();
            if tracked.slot.log_dirty {
                result = result.and(self.log(tracked, false));
            }
        }
        result
    }

    /// The pages that were written to since the last harvest, by range; a page that is written to while this runs is in this
    /// one or in the next. Whoever copies pages does so after it has returned.
    ///
    /// What devices write to RAM behind vm-memory's back is there when they have marked it. What a vCPU has written is there
    /// when it is out of the guest; while it runs, a processor that logs pages by itself may tell of some later.
    ///
    /// # Errors
    /// [`DirtyError`]; no page is lost then.
    pub fn harvest(&self) -> Result<Vec<DirtyPages>, DirtyError> {
        let mut state = lock(&self.state);
        if !state.tracking {
            return Err(DirtyError::NotTracking);
        }
        if self.has_rings() {
            self.collect_into(&mut state).map_err(DirtyError::Rings)?;
        } else {
            state.slots.values_mut().try_for_each(|tracked| self.read_log(tracked))?;
        }
        let State { slots, maps, .. } = &mut *state;
        let mut harvest = Vec::new();
        for tracked in slots.values_mut() {
            if let Some(part) = maps.get(&tracked.slot.guest_address) {
                part.map.take_into(part.pages.clone(), &mut tracked.pending);
            }
            let words = tracked.pending.take();
            if !words.is_empty() {
                harvest.push(DirtyPages::new(tracked.range(), words));
            }
        }
        harvest.sort_unstable_by_key(DirtyPages::range);
        Ok(harvest)
    }

    fn has_rings(&self) -> bool {
        matches!(self.mechanism(), DirtyMechanism::Ring { .. })
    }

    /// Has KVM track a slot, or not.
    fn log(&self, tracked: &mut Tracked, log_dirty: bool) -> Result<(), DirtyError> {
        let slot = MemorySlot { log_dirty, ..tracked.slot };
        // SAFETY:
        // - the slot exists with this memory, so whoever made it keeps the memory until it is deleted, which goes through
        //   `set_memory_slot` and waits for `state`.
        unsafe { self.vm.set_memory_slot(&slot) }
            .map_err(|source| DirtyError::Slot { range: tracked.range(), source })?;
        tracked.slot = slot;
        Ok(())
    }

    /// Adds what KVM has of a slot, and has KVM forget it.
    fn read_log(&self, tracked: &mut Tracked) -> Result<(), DirtyError> {
        let range = tracked.range();
        let failed = |source| DirtyError::Log { range, source };
        let pages = self.vm.dirty_log(&tracked.slot).map_err(failed)?;
        if !matches!(self.mechanism(), DirtyMechanism::ManualProtect { .. }) {
            tracked.pending.merge(pages);
            return Ok(());
        }
        let firsts = (0_u64..).step_by(CLEARED_AT_ONCE);
        let parts = pages.chunks(CLEARED_AT_ONCE / 64).zip(firsts);
        let cleared = parts
            .filter(|(part, _)| part.iter().any(|word| *word != 0))
            .try_for_each(|(part, first)| self.vm.clear_dirty_log(&tracked.slot, first, part));
        // Whatever was cleared is in it.
        tracked.pending.merge(pages);
        cleared.map_err(failed)
    }

    /// Empties the rings. With the state locked from before a page is read until it is tracked again: a harvest in between
    /// would have its page looked at too early.
    fn collect_into(&self, state: &mut State) -> Result<(), IoctlError> {
        let State { tracking, slots, .. } = state;
        self.vm.collect_rings(&mut |item| match item {
            _ if !*tracking => {}
            RingItem::Page(page) => {
                if let Some(tracked) = slots.get_mut(&page.slot) {
                    let pages = tracked.pages();
                    tracked.pending.set(page.page, pages);
                }
            }
            RingItem::Overrun => {
                if let Some(left_out) = self.overruns.permit() {
                    tracing::warn!(left_out, "KVM has overrun a dirty ring: all pages count as written to");
                }
                for tracked in slots.values_mut() {
                    let pages = tracked.pages();
                    tracked.pending.set_all(pages);
                }
            }
        })
    }
}

impl RingCollector for DirtyTracker {
    fn collect(&self) -> Result<(), IoctlError> {
        self.collect_into(&mut lock(&self.state))
    }
}

impl MemorySlots for DirtyTracker {
    fn slot_limit(&self) -> u32 {
        self.vm.slot_limit()
    }

    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError> {
        let mut state = lock(&self.state);
        let slot = MemorySlot { log_dirty: state.tracking && slot.size != 0, ..*slot };
        // SAFETY:
        // - the caller's promise is about the same memory.
        unsafe { self.vm.set_memory_slot(&slot) }?;
        if slot.size == 0 {
            state.slots.remove(&slot.id);
            return Ok(());
        }
        let mut tracked = Tracked { slot, pending: PageBits::default() };
        if state.tracking {
            tracked.pending.set_all(tracked.pages());
        }
        state.slots.insert(slot.id, tracked);
        Ok(())
    }
}

impl MemoryObserver for DirtyTracker {
    fn name(&self) -> &str {
        "dirty tracking"
    }

    fn map(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let mut state = lock(&self.state);
        let part = Part::of(region);
        if state.tracking {
            // Nobody has it yet, or it is tracked already, so nobody has to be waited for.
            part.map.start();
        }
        state.maps.insert(region.range().start, part);
        Ok(())
    }

    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let mut state = lock(&self.state);
        let (start, gone) = (region.range().start, Part::of(region));
        // What has come to its place meanwhile stays.
        if state.maps.get(&start).is_some_and(|part| part.is_of(&gone)) {
            state.maps.remove(&start);
        }
        if !state.maps.values().any(|part| Arc::ptr_eq(&part.map, &gone.map)) {
            gone.map.stop();
        }
        Ok(())
    }
}
