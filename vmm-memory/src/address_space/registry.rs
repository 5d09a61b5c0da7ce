//! `Registry`: what is mapped where, and what is about to be.
//!
//! Pure bookkeeping: nothing here calls KVM, an observer or anybody else.

use std::sync::Arc;

use vm_memory::GuestRegionCollection;
use vmm_core::Retired;

use super::draft::{Coming, Draft};
use super::plan::{Arrival, Departure, Plan};
use super::request::Request;
use crate::GuestMemory;
use crate::change::ChangeError;
use crate::observer::MemoryObserver;
use crate::range::RamRange;
use crate::region::RamRegion;
use crate::slot::Slot;
use crate::slot_ids::SlotIds;

/// Most tables that are kept for the next wait.
const MOST_STALE: usize = 16;

/// How far a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// In the table.
    Live,
    /// In the table still; a transaction is about to take it out.
    Claimed,
    /// A transaction has taken it out. It may come back.
    Leaving,
    /// A transaction is about to put it in.
    Coming,
    /// The same, and in the table already: it is a part of what has left, at the same address and with the same memory.
    Remaining,
    /// Not in the table, but the guest sees it, or an observer: it could not be taken back.
    Stuck,
}

/// A region.
pub(super) struct Entry {
    pub(super) region: Arc<RamRegion>,
    pub(super) phase: Phase,
    pub(super) id: u32,
    /// Absent while a transaction has it.
    slot: Option<Slot>,
}

/// See the module documentation.
pub(super) struct Registry {
    entries: Vec<Entry>,
    ids: SlotIds,
    observers: Vec<Arc<dyn MemoryObserver>>,
    /// Ranges in which nothing is but what is plugged.
    reserved: Vec<RamRange>,
    /// Tables that were replaced and that nobody has waited for yet, the oldest first. The next one who waits destroys them
    /// too, which costs him nothing; the reaper would have a grace period, and a barrier, for each.
    stale: Vec<Retired<GuestMemory>>,
    transactions: usize,
    /// A transaction has, or is about to have, the machine stand still.
    standstill: bool,
    /// An observer comes or goes.
    exclusive: bool,
}

impl Registry {
    pub(super) fn new(slot_limit: u32) -> Self {
        Self {
            entries: Vec::new(),
            ids: SlotIds::new(slot_limit),
            observers: Vec::new(),
            reserved: Vec::new(),
            stale: Vec::new(),
            transactions: 0,
            standstill: false,
            exclusive: false,
        }
    }

    /// The table: what is in it, by address.
    pub(super) fn table(&self) -> GuestMemory {
        let is_shown =
            |entry: &&Entry| matches!(entry.phase, Phase::Live | Phase::Claimed | Phase::Remaining);
        let shown = self.entries.iter().filter(is_shown);
        let mut regions: Vec<_> = shown.map(|entry| Arc::clone(&entry.region)).collect();
        regions.sort_unstable_by_key(|region| region.range());
        // Refused only if it is empty: it is sorted, and no two overlap.
        GuestRegionCollection::from_arc_regions(regions).unwrap_or_default()
    }

    /// Makes a plan of `request` and marks what it is about; [`end`](Self::end) takes it back. `new_slot` makes a slot
    /// that does not exist yet.
    pub(super) fn begin(
        &mut self,
        request: Request,
        last_address: u64,
        new_slot: impl Fn(u32, Arc<RamRegion>) -> Slot,
    ) -> Result<Plan, ChangeError> {
        if self.exclusive {
            return Err(ChangeError::AllBusy);
        }
        let mut draft = Draft::of(&self.entries, request, &self.reserved, last_address)?;
        if draft.standstill && self.standstill {
            return Err(ChangeError::AllBusy);
        }
        self.assign_ids(&mut draft)?;
        let mut plan =
            Plan { observers: self.observers.clone(), standstill: draft.standstill, ..Plan::default() };
        for leaving in draft.leaving {
            if let Some(entry) = self.entry(&leaving.region)
                && let Some(slot) = entry.slot.take()
            {
                entry.phase = Phase::Claimed;
                plan.departures.push(Departure { slot, pins: leaving.pins, lost: false });
            }
        }
        for Coming { region, id, contents } in draft.coming {
            if let Some(id) = id {
                let region = Arc::new(region);
                let slot = new_slot(id, Arc::clone(&region));
                self.entries.push(Entry { region, phase: Phase::Coming, id, slot: None });
                plan.arrivals.push(Arrival { slot, contents, stuck: false });
            }
        }
        self.transactions = self.transactions.saturating_add(1);
        self.standstill |= plan.standstill;
        Ok(plan)
    }

    /// Gives a slot number to whatever comes and has none: first those of what only leaves.
    fn assign_ids(&mut self, draft: &mut Draft) -> Result<(), ChangeError> {
        let freed = draft.leaving.iter().filter(|leaving| leaving.frees_id);
        let mut freed: Vec<_> =
            freed.filter_map(|leaving| self.entry(&leaving.region).map(|entry| entry.id)).collect();
        let mut taken = Vec::new();
        for coming in draft.coming.iter_mut().filter(|coming| coming.id.is_none()) {
            coming.id = freed.pop().or_else(|| {
                let id = self.ids.take()?;
                taken.push(id);
                Some(id)
            });
            if coming.id.is_none() {
                taken.into_iter().for_each(|id| self.ids.give_back(id));
                return Err(ChangeError::TooManySlots { limit: self.ids.limit() });
            }
        }
        Ok(())
    }

    /// Keeps a table for the next wait. Returns what is too much to be kept.
    pub(super) fn keep_stale(&mut self, retired: Retired<GuestMemory>) -> Vec<Retired<GuestMemory>> {
        self.stale.push(retired);
        if self.stale.len() > MOST_STALE { self.take_stale() } else { Vec::new() }
    }

    pub(super) fn take_stale(&mut self) -> Vec<Retired<GuestMemory>> {
        std::mem::take(&mut self.stale)
    }

    /// Takes what departs out of the table, but for what comes again where it was: who reads the table finds that all the time.
    /// What becomes a part of something larger stays as it is; of what is divided, the parts that come are there from now on.
    pub(super) fn take_out(&mut self, plan: &Plan) {
        let arrivals: Vec<_> = plan.arrivals.iter().map(|arrival| arrival.slot.region()).collect();
        let mut gone = Vec::new();
        for departure in plan.departures.iter().map(|departure| departure.slot.region()) {
            if arrivals.iter().any(|arrival| departure.is_part_of(arrival)) {
                continue;
            }
            gone.push(departure);
            if let Some(entry) = self.entry(departure) {
                entry.phase = Phase::Leaving;
            }
        }
        for arrival in arrivals.into_iter().filter(|arrival| gone.iter().any(|gone| arrival.is_part_of(gone)))
        {
            if let Some(entry) = self.entry(arrival) {
                entry.phase = Phase::Remaining;
            }
        }
    }

    /// Ends a transaction; returns what nobody needs any more.
    pub(super) fn end(&mut self, plan: Plan, completed: bool) -> Vec<Slot> {
        let mut leftovers = Vec::new();
        let mut ids = Vec::new();
        let stays = |keep, phase| if keep { Some(phase) } else { None };
        let departures = plan.departures.into_iter();
        let departures =
            departures.map(|departure| (stays(!completed && !departure.lost, Phase::Live), departure.slot));
        let arrivals = plan.arrivals.into_iter().map(|arrival| {
            let phase = if completed { Phase::Live } else { Phase::Stuck };
            (stays(completed || arrival.stuck, phase), arrival.slot)
        });
        for (phase, slot) in departures.chain(arrivals) {
            ids.push(slot.id());
            match (phase, self.entry(slot.region())) {
                (Some(phase), Some(entry)) => {
                    entry.phase = phase;
                    entry.slot = Some(slot);
                }
                _ => {
                    self.entries.retain(|entry| !Arc::ptr_eq(&entry.region, slot.region()));
                    leftovers.push(slot);
                }
            }
        }
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if self.entries.iter().all(|entry| entry.id != id) {
                self.ids.give_back(id);
            }
        }
        self.transactions = self.transactions.saturating_sub(1);
        self.standstill &= !plan.standstill;
        leftovers
    }

    /// Keeps `range` for what is plugged there.
    pub(super) fn reserve(&mut self, range: RamRange, last_address: u64) -> Result<(), ChangeError> {
        Draft::check_reservation(&self.entries, range, &self.reserved, last_address)?;
        self.reserved.push(range);
        Ok(())
    }

    pub(super) fn end_reservation(&mut self, range: RamRange) {
        self.reserved.retain(|reserved| *reserved != range);
    }

    fn entry(&mut self, region: &Arc<RamRegion>) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.region, region))
    }

    /// Keeps transactions out until [`end_exclusive`](Self::end_exclusive); returns what is mapped.
    pub(super) fn begin_exclusive(&mut self) -> Result<Vec<Arc<RamRegion>>, ChangeError> {
        if self.exclusive || self.transactions != 0 {
            return Err(ChangeError::AllBusy);
        }
        self.exclusive = true;
        let live = self.entries.iter().filter(|entry| entry.phase == Phase::Live);
        Ok(live.map(|entry| Arc::clone(&entry.region)).collect())
    }

    pub(super) fn end_exclusive(&mut self) {
        self.exclusive = false;
    }

    /// Those that are told of changes. Not to be altered but between the two above.
    pub(super) fn observers(&mut self) -> &mut Vec<Arc<dyn MemoryObserver>> {
        &mut self.observers
    }

    /// For the end of the address space: the slots of what is mapped, and who is to be told. What is stuck stays so.
    pub(super) fn take_all(&mut self) -> (Vec<Slot>, Vec<Arc<dyn MemoryObserver>>) {
        let live = |entry: Entry| if entry.phase == Phase::Live { entry.slot } else { None };
        let slots = std::mem::take(&mut self.entries).into_iter().filter_map(live);
        (slots.collect(), std::mem::take(&mut self.observers))
    }

    /// What is mapped, by address.
    pub(super) fn ranges(&self) -> Vec<RamRange> {
        let live = self.entries.iter().filter(|entry| entry.phase == Phase::Live);
        let mut ranges: Vec<_> = live.map(|entry| entry.region.range()).collect();
        ranges.sort_unstable();
        ranges
    }
}
