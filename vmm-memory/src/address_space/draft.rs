//! `Draft`: what a list of changes makes of a list of regions.
//!
//! The algebra of the address space, without effects: changes are applied one after the other, each to what the ones
//! before it have left, and what counts in the end is the difference.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::registry::{Entry, Phase};
use super::request::{Replug, Request};
use crate::block::RamBlock;
use crate::change::{Change, ChangeError};
use crate::pin::Pins;
use crate::range::RamRange;
use crate::region::RamRegion;

/// A region that leaves its place.
pub(super) struct Leaving {
    pub(super) region: Arc<RamRegion>,
    /// The pins of what does not come again, and where it is.
    pub(super) pins: Vec<(RamRange, Arc<Pins>)>,
    /// Nothing comes in its stead, so its slot number is free.
    pub(super) frees_id: bool,
}

/// A region that takes a place.
pub(super) struct Coming {
    pub(super) region: RamRegion,
    /// The slot number it has had.
    pub(super) id: Option<u32>,
    /// What is to be copied into it.
    pub(super) contents: Option<Arc<RamRegion>>,
}

/// The difference that a transaction makes.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) leaving: Vec<Leaving>,
    pub(super) coming: Vec<Coming>,
    /// A running guest would notice.
    pub(super) standstill: bool,
}

/// A region as a transaction would have it.
struct Drafted {
    /// What it is now, and its slot number.
    origin: Option<(Arc<RamRegion>, u32)>,
    range: RamRange,
    read_only: bool,
    block: Arc<RamBlock>,
}

impl Draft {
    /// What `request` makes of `entries`; outside of `reserved` but for what is plugged, and below `last`, the highest
    /// guest-physical address.
    pub(super) fn of(
        entries: &[Entry],
        request: Request,
        reserved: &[RamRange],
        last: u64,
    ) -> Result<Self, ChangeError> {
        let mut work = Work::new(entries, reserved, last);
        match request {
            Request::Changes(changes) => changes.into_iter().try_for_each(|change| work.apply(change))?,
            Request::Replug(replug) => work.replug(replug)?,
        }
        Ok(work.difference())
    }

    /// Whether `range` can be reserved.
    pub(super) fn check_reservation(
        entries: &[Entry],
        range: RamRange,
        reserved: &[RamRange],
        last: u64,
    ) -> Result<(), ChangeError> {
        Work::new(entries, reserved, last).check_free(range, None)
    }
}

/// The regions while changes are applied.
struct Work<'a> {
    regions: Vec<Drafted>,
    gone: Vec<Arc<RamRegion>>,
    /// Ranges that belong to other transactions.
    busy: Vec<RamRange>,
    /// Ranges in which nothing is but what is plugged.
    reserved: &'a [RamRange],
    last: u64,
    /// Something leaves and comes again at the same address.
    in_place: bool,
}

impl<'a> Work<'a> {
    fn new(entries: &[Entry], reserved: &'a [RamRange], last: u64) -> Self {
        let (live, busy): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.phase == Phase::Live);
        Self {
            regions: live.into_iter().map(Drafted::from).collect(),
            gone: Vec::new(),
            busy: busy.into_iter().map(|entry| entry.region.range()).collect(),
            reserved,
            last,
            in_place: false,
        }
    }

    fn replug(&mut self, Replug { leave, come }: Replug) -> Result<(), ChangeError> {
        for &range in &leave {
            let at = self.find_any(range)?;
            self.gone.extend(self.regions.swap_remove(at).origin.map(|(region, _)| region));
        }
        for (start, block) in come {
            let range = RamRange { start, size: block.len() };
            self.check_unmapped(range, None)?;
            self.in_place |= leave.iter().any(|leaving| leaving.overlaps(&range));
            self.regions.push(Drafted { origin: None, range, read_only: false, block });
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) -> Result<(), ChangeError> {
        match change {
            Change::Map { start, memory, read_only } => {
                let range = RamRange { start, size: memory.len() };
                self.check_free(range, None)?;
                let block = RamBlock::new(memory);
                self.regions.push(Drafted { origin: None, range, read_only, block });
            }
            Change::Unmap(range) => {
                let at = self.find(range)?;
                self.gone.extend(self.regions.swap_remove(at).origin.map(|(region, _)| region));
            }
            Change::Replace { range, memory } => {
                let size = memory.len();
                let at = self.find(range)?;
                if size != range.size {
                    return Err(ChangeError::OtherSize { range, size });
                }
                self.edit(at, |region| region.block = RamBlock::new(memory));
            }
            Change::Protect { range, read_only } => {
                let at = self.find(range)?;
                self.edit(at, |region| region.read_only = read_only);
            }
            Change::Move { range, to } => {
                let at = self.find(range)?;
                let to = RamRange { start: to, size: range.size };
                self.check_free(to, Some(at))?;
                self.edit(at, |region| region.range = to);
            }
        }
        Ok(())
    }

    fn edit(&mut self, at: usize, edit: impl FnOnce(&mut Drafted)) {
        if let Some(region) = self.regions.get_mut(at) {
            edit(region);
        }
    }

    /// A region that is not plugged.
    fn find(&self, range: RamRange) -> Result<usize, ChangeError> {
        let at = self.find_any(range)?;
        match self.regions.get(at) {
            Some(region) if region.block.is_plugged => Err(ChangeError::Plugged(range)),
            _ => Ok(at),
        }
    }

    fn find_any(&self, range: RamRange) -> Result<usize, ChangeError> {
        let found = self.regions.iter().position(|region| region.range == range);
        found.ok_or_else(|| {
            let busy = self.busy.contains(&range);
            if busy { ChangeError::Busy(range) } else { ChangeError::NotMapped(range) }
        })
    }

    /// Whether RAM can be at `range`, but for the region number `but`.
    fn check_free(&self, range: RamRange, but: Option<usize>) -> Result<(), ChangeError> {
        if !range.is_whole_pages() {
            return Err(ChangeError::BadRange(range));
        }
        if range.end().is_none_or(|end| end.saturating_sub(1) > self.last) {
            return Err(ChangeError::BeyondAddressSpace { range, last: self.last });
        }
        if let Some(by) = self.reserved.iter().find(|reserved| reserved.overlaps(&range)) {
            return Err(ChangeError::Reserved { range, by: *by });
        }
        self.check_unmapped(range, but)
    }

    fn check_unmapped(&self, range: RamRange, but: Option<usize>) -> Result<(), ChangeError> {
        let others = self.regions.iter().enumerate().filter(|(at, _)| Some(*at) != but);
        if let Some((_, with)) = others.into_iter().find(|(_, other)| other.range.overlaps(&range)) {
            return Err(ChangeError::Overlap { range, with: with.range });
        }
        match self.busy.iter().find(|busy| busy.overlaps(&range)) {
            Some(busy) => Err(ChangeError::Busy(*busy)),
            None => Ok(()),
        }
    }

    fn difference(self) -> Draft {
        let mut draft = Draft { standstill: self.in_place, ..Draft::default() };
        let mut leaving: Vec<_> = self.gone.into_iter().map(|region| (region, true)).collect();
        for Drafted { origin, range, read_only, block } in self.regions {
            let mut coming =
                Coming { region: RamRegion::new(range, read_only, block), id: None, contents: None };
            if let Some((old, id)) = origin {
                let memory_stays = Arc::ptr_eq(old.block(), coming.region.block());
                let same_protection = old.is_read_only() == read_only;
                if memory_stays && same_protection && old.range() == range {
                    continue;
                }
                draft.standstill |= !memory_stays || !same_protection;
                coming.id = Some(id);
                coming.contents = (!memory_stays).then(|| Arc::clone(&old));
                leaving.push((old, false));
            }
            draft.coming.push(coming);
        }
        let stays: BTreeSet<*const Pins> = draft
            .coming
            .iter()
            .flat_map(|coming| coming.region.block().pins().iter().map(Arc::as_ptr))
            .collect();
        let leaving = leaving.into_iter().map(|(region, frees_id)| {
            let pins = pins_that_go(&region, &stays);
            Leaving { region, pins, frees_id }
        });
        draft.leaving = leaving.collect();
        draft
    }
}

/// The pins of `region` but for those that `stays` has, each with its part of the region.
fn pins_that_go(region: &RamRegion, stays: &BTreeSet<*const Pins>) -> Vec<(RamRange, Arc<Pins>)> {
    let (block, range) = (region.block(), region.range());
    let starts = (0..).map(|unit: u64| range.start.saturating_add(unit.saturating_mul(block.unit())));
    let units = starts.zip(block.pins()).filter(|(_, pins)| !stays.contains(&Arc::as_ptr(pins)));
    units.map(|(start, pins)| (RamRange { start, size: block.unit() }, Arc::clone(pins))).collect()
}

impl From<&Entry> for Drafted {
    fn from(entry: &Entry) -> Self {
        let region = &entry.region;
        Self {
            origin: Some((Arc::clone(region), entry.id)),
            range: region.range(),
            read_only: region.is_read_only(),
            block: Arc::clone(region.block()),
        }
    }
}
