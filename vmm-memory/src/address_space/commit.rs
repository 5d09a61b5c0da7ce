//! `Commit`: a transaction on its way, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_core::Retired;

use super::AddressSpace;
use super::plan::{Arrival, Plan};
use super::sequence::{Insertion, Removal, insert, remove};
use crate::GuestMemory;
use crate::change::ChangeError;
use crate::observer::ObserverError;
use crate::quiesce::Quiesced;
use crate::range::RamRange;
use crate::region::RamRegion;
use crate::slot::Slot;

/// What has been done and may have to be undone, by positions in the plan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Deleted { departure: usize },
    Unmapped { departure: usize, observer: usize },
    Mapped { arrival: usize, observer: usize },
    Created { arrival: usize },
}

/// A transaction that has begun. It comes to an end in any case: if a callback panics, what was done is undone.
pub(super) struct Commit<'a> {
    space: &'a AddressSpace,
    plan: Plan,
    pin_limit: Duration,
    done: Vec<Step>,
    /// The table has been replaced.
    published: bool,
    ended: bool,
    standstill: Option<Quiesced>,
}

impl<'a> Commit<'a> {
    /// Waits for pins no longer than `pin_limit`.
    pub(super) fn new(space: &'a AddressSpace, plan: Plan, pin_limit: Duration) -> Self {
        Self { space, plan, pin_limit, done: Vec::new(), published: false, ended: false, standstill: None }
    }

    pub(super) fn run(mut self) -> Result<(), ChangeError> {
        match self.attempt() {
            Ok(()) => Ok(()),
            Err(cause) => {
                let ranges = self.undo();
                self.end(false);
                if ranges.is_empty() {
                    Err(cause)
                } else {
                    Err(ChangeError::Incomplete { ranges, cause: Box::new(cause) })
                }
            }
        }
    }

    fn attempt(&mut self) -> Result<(), ChangeError> {
        self.prepare_contents();
        if self.plan.standstill
            && let Some(machine) = self.space.machine.get()
        {
            let standstill = Quiesced::begin(machine).map_err(|source| ChangeError::Quiesce { source })?;
            self.standstill = Some(standstill);
        }
        if !self.plan.departures.is_empty() {
            remove(self)?;
        }
        self.copy_contents()?;
        insert(self)
    }

    /// What is to be copied is read without faults, which would make the standstill several times as long.
    fn prepare_contents(&self) {
        for from in self.plan.arrivals.iter().filter_map(|arrival| arrival.contents.as_ref()) {
            let block = from.block();
            block.memory().prepare_read(block.offset(), block.len());
        }
    }

    /// Nobody writes to the old memory any more, and nobody sees the new one yet.
    fn copy_contents(&self) -> Result<(), ChangeError> {
        for arrival in &self.plan.arrivals {
            let region = arrival.slot.region();
            if let Some(from) = &arrival.contents {
                let copied = region.copy_contents(from);
                copied.map_err(|source| ChangeError::Copy { range: region.range(), source })?;
            }
        }
        Ok(())
    }

    /// Takes back what was done, the last first; returns the ranges for which that failed.
    fn undo(&mut self) -> Vec<RamRange> {
        while let Some(step) = self.done.pop() {
            match step {
                Step::Created { arrival } => self.undo_create(arrival),
                Step::Mapped { arrival, observer } => self.undo_map(arrival, observer),
                Step::Unmapped { departure, observer } => self.undo_unmap(departure, observer),
                Step::Deleted { departure } => self.undo_delete(departure),
            }
        }
        for departure in &self.plan.departures {
            departure.pins.iter().for_each(|(_, pins)| pins.reopen());
        }
        let lost = self.plan.departures.iter().filter(|departure| departure.lost).map(|lost| &lost.slot);
        let stuck = self.plan.arrivals.iter().filter(|arrival| arrival.stuck).map(|stuck| &stuck.slot);
        lost.chain(stuck).map(|slot| slot.region().range()).collect()
    }

    fn undo_create(&mut self, arrival: usize) {
        if let Some(arrival) = self.plan.arrivals.get_mut(arrival)
            && let Err(error) = arrival.slot.delete()
        {
            let range = arrival.slot.region().range();
            tracing::error!(%range, %error, "the guest keeps memory that was not to be: its slot cannot be deleted");
            // What observers have of it, their devices may have been told by the guest: that stays too.
            arrival.slot.region().block().leak();
            arrival.stuck = true;
        }
    }

    fn undo_map(&mut self, arrival: usize, observer: usize) {
        let Some(coming) = self.plan.arrivals.get(arrival) else { return };
        // What the guest keeps seeing, the observers keep. What another observer keeps, this one need not.
        let guest_keeps_it = coming.stuck && coming.slot.exists();
        if !guest_keeps_it && self.unmap_or_leak(&coming.slot, observer) {
            self.plan.arrivals.get_mut(arrival).into_iter().for_each(|arrival| arrival.stuck = true);
        }
    }

    fn undo_unmap(&mut self, departure: usize, observer: usize) {
        let Some(region) = self.returning(departure, Some(observer)) else { return };
        let Some(watcher) = self.plan.observers.get(observer) else { return };
        if let Err(error) = watcher.map(&region) {
            let (range, name) = (region.range(), watcher.name());
            tracing::error!(%range, %error, observer = name, "guest RAM is lost: it cannot be mapped again");
            self.lose(departure, Some(observer));
        }
    }

    fn undo_delete(&mut self, departure: usize) {
        if self.returning(departure, None).is_none() {
            return;
        }
        let Some(leaving) = self.plan.departures.get_mut(departure) else { return };
        if let Err(error) = leaving.slot.create() {
            let range = leaving.slot.region().range();
            tracing::error!(%range, %error, "guest RAM is lost: its slot cannot be made again");
            self.lose(departure, None);
        }
    }

    /// A departure that can come back. What has taken its place may be stuck there: then it is lost; observer `without` does
    /// not have it mapped then.
    fn returning(&mut self, departure: usize, without: Option<usize>) -> Option<Arc<RamRegion>> {
        let leaving = self.plan.departures.get(departure)?;
        if leaving.lost {
            return None;
        }
        let region = Arc::clone(leaving.slot.region());
        let is_in_the_way =
            |arrival: &Arrival| arrival.stuck && arrival.slot.region().range().overlaps(&region.range());
        if self.plan.arrivals.iter().any(is_in_the_way) {
            tracing::error!(range = %region.range(), "guest RAM is lost: its place is taken");
            self.lose(departure, without);
            return None;
        }
        Some(region)
    }

    /// Has those observers unmap a departure that have it mapped: all but `without`, and those that have yet to map it again.
    fn lose(&mut self, departure: usize, without: Option<usize>) {
        for observer in (0..self.plan.observers.len()).rev() {
            let unmapped = Step::Unmapped { departure, observer };
            if Some(observer) != without
                && !self.done.contains(&unmapped)
                && let Some(leaving) = self.plan.departures.get(departure)
            {
                self.unmap_or_leak(&leaving.slot, observer);
            }
        }
        if let Some(leaving) = self.plan.departures.get_mut(departure) {
            leaving.lost = true;
        }
    }

    /// Whether the memory had to be kept.
    fn unmap_or_leak(&self, slot: &Slot, observer: usize) -> bool {
        let region = slot.region();
        let Some(observer) = self.plan.observers.get(observer) else { return false };
        let Err(error) = observer.unmap(region) else { return false };
        let observer = observer.name();
        tracing::error!(range = %region.range(), %error, observer, "memory is kept mapped for an observer");
        region.block().leak();
        true
    }

    /// Has the registry note how it ended, publishes that, and lets the machine go on before memory is given back.
    fn end(&mut self, completed: bool) {
        self.ended = true;
        let plan = std::mem::take(&mut self.plan);
        let publish = if completed { !plan.arrivals.is_empty() } else { self.published };
        let mut leftovers = Vec::new();
        // What is in the old table is in the new one too, or has been waited for.
        self.space.publish_if(publish, |registry| leftovers = registry.end(plan, completed));
        self.standstill = None;
        drop(leftovers);
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.undo();
            self.end(false);
        }
    }
}

impl Removal for Commit<'_> {
    type Error = ChangeError;
    type Replaced = Retired<GuestMemory>;

    fn unpublish(&mut self) -> Self::Replaced {
        self.published = true;
        self.space.publish_and_retire(|registry| registry.take_out(&self.plan))
    }

    fn delete_slots(&mut self) -> Result<(), ChangeError> {
        for (position, departure) in self.plan.departures.iter_mut().enumerate() {
            let range = departure.slot.region().range();
            departure.slot.delete().map_err(|source| ChangeError::Slot { range, source })?;
            self.done.push(Step::Deleted { departure: position });
        }
        Ok(())
    }

    fn wait_for_readers(&mut self, replaced: Self::Replaced) -> Result<(), ChangeError> {
        Ok(replaced.wait()?)
    }

    fn wait_for_pins(&mut self) -> Result<(), ChangeError> {
        let limit = self.pin_limit;
        let all: Vec<_> = self.plan.departures.iter().flat_map(|departure| &departure.pins).collect();
        // All are asked before the first is waited for.
        for (range, pins) in &all {
            pins.close(*range);
        }
        let now = Instant::now();
        let deadline = now.checked_add(limit).unwrap_or(now);
        for (range, pins) in all {
            let holders = pins.wait_released(deadline);
            if !holders.is_empty() {
                return Err(ChangeError::Pinned { range: *range, holders, limit });
            }
        }
        Ok(())
    }

    fn unmap(&mut self) -> Result<(), ChangeError> {
        for (position, departure) in self.plan.departures.iter().enumerate() {
            let region = departure.slot.region();
            for (number, observer) in self.plan.observers.iter().enumerate().rev() {
                observer.unmap(region).map_err(|source| failed(observer.name(), region.range(), source))?;
                self.done.push(Step::Unmapped { departure: position, observer: number });
            }
        }
        Ok(())
    }
}

impl Insertion for Commit<'_> {
    type Error = ChangeError;

    fn map(&mut self) -> Result<(), ChangeError> {
        for (position, arrival) in self.plan.arrivals.iter().enumerate() {
            let region = arrival.slot.region();
            for (number, observer) in self.plan.observers.iter().enumerate() {
                observer.map(region).map_err(|source| failed(observer.name(), region.range(), source))?;
                self.done.push(Step::Mapped { arrival: position, observer: number });
            }
        }
        Ok(())
    }

    fn create_slots(&mut self) -> Result<(), ChangeError> {
        for (position, arrival) in self.plan.arrivals.iter_mut().enumerate() {
            let range = arrival.slot.region().range();
            arrival.slot.create().map_err(|source| ChangeError::Slot { range, source })?;
            self.done.push(Step::Created { arrival: position });
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.end(true);
    }
}

/// An observer did not follow.
pub(super) fn failed(observer: &str, range: RamRange, source: ObserverError) -> ChangeError {
    ChangeError::Observer { observer: observer.to_owned(), range, source }
}
