//! `Table`: what of guest RAM a back end has a map of, as runs of files, and what is to be told of a change.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_memory::GuestMemory;

use super::VhostUserError;

/// Guest addresses that are one run of this process's addresses, and of a file.
#[derive(Clone, Debug)]
pub(super) struct Run {
    start: u64,
    size: u64,
    host: u64,
    file: Arc<File>,
    offset: u64,
}

impl Run {
    /// How the protocol has it.
    pub(super) fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.start,
            memory_size: self.size,
            userspace_addr: self.host,
            mmap_offset: self.offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// The part of it from one guest address to another.
    fn part(&self, start: u64, end: u64) -> Self {
        let skipped = start.saturating_sub(self.start);
        Self {
            start,
            size: end.saturating_sub(start),
            host: self.host.saturating_add(skipped),
            file: Arc::clone(&self.file),
            offset: self.offset.saturating_add(skipped),
        }
    }

    /// Whether all of `other` is in it, at the same place of all.
    fn has(&self, other: &Self) -> bool {
        self.start <= other.start
            && other.end() <= self.end()
            && self.part(other.start, other.end()).is(other)
    }

    fn is(&self, other: &Self) -> bool {
        let place = |run: &Self| (run.start, run.size, run.host, run.offset);
        place(self) == place(other) && Arc::ptr_eq(&self.file, &other.file)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Makes it longer by `next`, if that goes on in each respect.
    fn take(&mut self, next: &Self) -> bool {
        let longer = Self { size: self.size.saturating_add(next.size), ..self.clone() };
        let goes_on = longer.has(next) && self.end() == next.start;
        if goes_on {
            *self = longer;
        }
        goes_on
    }
}

/// The runs of `memory`, in the order of their addresses, as few as there can be.
///
/// # Errors
/// A part of it is not in a file that others can have.
pub(super) fn runs(memory: &GuestMemory) -> Result<Vec<Run>, VhostUserError> {
    let mut runs: Vec<Run> = Vec::new();
    for region in memory.iter() {
        let file = region.file_offset().ok_or(VhostUserError::NotShared)?;
        let run = Run {
            start: region.start_addr().raw_value(),
            size: region.len(),
            host: region.host_address() as u64,
            file: Arc::clone(file.arc()),
            offset: file.start(),
        };
        if !runs.last_mut().is_some_and(|last| last.take(&run)) {
            runs.push(run);
        }
    }
    Ok(runs)
}

/// What a back end that takes runs one by one is to be told.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// To be said first.
    pub(super) removed: Vec<Run>,
    pub(super) added: Vec<Run>,
    /// What it knows then.
    pub(super) all: Vec<Run>,
}

impl Change {
    /// From `known` to `runs`, those of all memory, with at most `limit` known.
    ///
    /// # Errors
    /// They are more, also when they are as few as there can be.
    pub(super) fn new(known: &[Run], runs: &[Run], limit: usize) -> Result<Self, VhostUserError> {
        let (kept, removed): (Vec<_>, Vec<_>) =
            known.iter().cloned().partition(|known| runs.iter().any(|run| run.has(known)));
        let added: Vec<_> = runs.iter().flat_map(|run| without(run, &kept)).collect();
        let all: Vec<_> = kept.into_iter().chain(added.iter().cloned()).collect();
        if all.len() <= limit {
            return Ok(Self { removed, added, all });
        }
        if runs.len() > limit {
            return Err(VhostUserError::Regions { regions: runs.len(), limit });
        }
        Ok(Self { removed: known.to_vec(), added: runs.to_vec(), all: runs.to_vec() })
    }

    /// Whether memory that stays is unknown for a moment.
    pub(super) fn interrupts(&self) -> bool {
        self.removed.iter().any(|removed| self.all.iter().any(|run| run.overlaps(removed)))
    }
}

/// What of `run` is in none of `others`, which are in no order and do not overlap.
fn without(run: &Run, others: &[Run]) -> Vec<Run> {
    let mut inside: Vec<_> = others.iter().filter(|other| other.overlaps(run)).collect();
    inside.sort_by_key(|other| other.start);
    let mut gaps = Vec::new();
    let mut at = run.start;
    for other in inside {
        if at < other.start {
            gaps.push(run.part(at, other.start));
        }
        at = other.end();
    }
    if at < run.end() {
        gaps.push(run.part(at, run.end()));
    }
    gaps
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// Runs of one file, each with its start and size; host address and offset follow the start.
    fn made(file: &Arc<File>, runs: &[(u64, u64)]) -> Vec<Run> {
        let run = |&(start, size): &(u64, u64)| Run {
            start,
            size,
            host: start + 0x10_0000,
            file: Arc::clone(file),
            offset: start,
        };
        runs.iter().map(run).collect()
    }

    fn places(runs: &[Run]) -> Vec<(u64, u64)> {
        runs.iter().map(|run| (run.start, run.size)).collect()
    }

    #[test]
    fn what_is_added_is_all_that_is_told_and_what_stays_is_not_touched() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let known = made(&file, &[(0, 10), (20, 10)]);
        let change = Change::new(&known, &made(&file, &[(0, 40)]), 8).unwrap();
        assert_eq!((places(&change.removed), places(&change.added)), (vec![], vec![(10, 10), (30, 10)]));
        assert!(!change.interrupts());
        let less = Change::new(&change.all, &made(&file, &[(0, 20)]), 8).unwrap();
        assert_eq!((places(&less.removed), places(&less.added)), (vec![(20, 10), (30, 10)], vec![]));
        assert!(!less.interrupts());
        let part = Change::new(&known, &made(&file, &[(0, 10), (25, 5)]), 8).unwrap();
        assert_eq!((places(&part.removed), places(&part.added)), (vec![(20, 10)], vec![(25, 5)]));
        assert!(part.interrupts());
    }

    #[test]
    fn more_than_a_back_end_takes_becomes_fewer_or_is_refused() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let known = made(&file, &[(0, 10), (10, 10)]);
        let change = Change::new(&known, &made(&file, &[(0, 30)]), 2).unwrap();
        assert_eq!((places(&change.added), change.all.len()), (vec![(0, 30)], 1));
        assert!(change.interrupts());
        let scattered = made(&file, &[(0, 1), (2, 1), (4, 1)]);
        let refused = Change::new(&known, &scattered, 2).unwrap_err().to_string();
        assert_eq!(refused, "the back end takes 2 regions of guest RAM, not 3");
    }

    #[test]
    fn another_file_or_another_place_is_another_run() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (one, other) = (Arc::new(one), Arc::new(other));
        let known = made(&one, &[(0, 10)]);
        let change = Change::new(&known, &made(&other, &[(0, 10)]), 8).unwrap();
        assert_eq!((change.removed.len(), change.added.len(), change.interrupts()), (1, 1, true));
        let mut first = known[0].clone();
        assert!(!first.take(&made(&other, &[(10, 10)])[0]));
        assert!(first.take(&made(&one, &[(10, 10)])[0]));
    }
}
