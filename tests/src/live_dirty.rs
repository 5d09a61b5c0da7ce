//! `Writers`: who writes to guest RAM that is tracked, and what harvests must have of it. The guest's side is in
//! `tests/guests/dirty.S`.
//!
//! A clock ticks before and after each harvest. A write has the time before it and the time after it. The first harvest that
//! begins after it, or one before that which ended after it had begun, has the page; and no harvest has a page but for
//! such a write.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use vm_memory::{Bytes, GuestAddress};
use vmm_core::Deferred;
use vmm_memory::{AddressSpace, DirtyTracker, RamRange};
use vmm_vcpu::ExitHandler;

const PAGE: u64 = 4096;
/// As the guest has it: half of the pages are its vCPUs', the others are a device's.
pub const WINDOW: RamRange = RamRange { start: 0x4000_0000, size: 1024 * PAGE };
const DEVICES_PAGES: std::ops::Range<u64> = 512..1024;
const WRITE_PORT: u16 = 0x590;

/// vCPUs that write.
pub const CPUS: usize = 2;
/// The number of the device among the writers.
const DEVICE: usize = CPUS;

/// A write to a page, by its number in the window.
#[derive(Clone, Copy, Debug)]
struct Write {
    page: u64,
    before: u64,
    after: u64,
}

#[derive(Default)]
struct Written {
    /// The page that is being written to, and since when.
    current: Option<(u64, u64)>,
    done: Vec<Write>,
}

/// See the module documentation.
#[derive(Default)]
pub struct Writers {
    clock: AtomicU64,
    written: [Mutex<Written>; CPUS + 1],
    /// Exits of the guest that should not be.
    strange: AtomicU64,
}

/// What was harvested in one time of tracking.
pub struct Session {
    /// When it was about to be started, and when it had been.
    start: (u64, u64),
    harvests: Vec<Harvest>,
}

struct Harvest {
    begin: u64,
    end: u64,
    pages: HashSet<u64>,
}

impl Writers {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn of(&self, writer: usize) -> MutexGuard<'_, Written> {
        self.written[writer].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes of the vCPUs so far, but for those that were forgotten.
    #[must_use]
    pub fn count(&self) -> usize {
        (0..CPUS).map(|writer| self.of(writer).done.len()).sum()
    }

    /// Whether each vCPU has written since its machine was made, or since the writes were forgotten.
    #[must_use]
    pub fn all_have_begun(&self) -> bool {
        (0..CPUS).all(|writer| !self.of(writer).done.is_empty())
    }

    /// The writer is done with the page before, and will write to this one.
    fn announce(&self, writer: usize, page: u64) {
        let mut written = self.of(writer);
        let now = self.now();
        if let Some((page, before)) = written.current.replace((page, now)) {
            written.done.push(Write { page, before, after: now });
        }
    }

    /// Is a device that writes until `is_over`.
    ///
    /// # Errors
    ///
    /// There is no RAM.
    pub fn work(&self, space: &AddressSpace, is_over: impl Fn() -> bool) -> Result<()> {
        let mut number = 1_u64;
        while !is_over() {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let count = DEVICES_PAGES.end - DEVICES_PAGES.start;
            let page = DEVICES_PAGES.start + (number >> 33) % count;
            self.announce(DEVICE, page);
            space.memory().write_obj(number, GuestAddress(WINDOW.start + page * PAGE + 8))?;
            // About as often as a vCPU, which would be held up otherwise.
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// Starts tracking.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(&self, tracker: &DirtyTracker) -> Result<Session> {
        for writer in 0..self.written.len() {
            self.of(writer).done.clear();
        }
        let begin = self.tick();
        tracker.start()?;
        Ok(Session { start: (begin, self.tick()), harvests: Vec::new() })
    }

    /// Whether the guest did nothing else.
    ///
    /// # Errors
    ///
    /// It did.
    pub fn ensure_right(&self) -> Result<()> {
        ensure!(
            self.strange.load(Ordering::Relaxed) == 0,
            "the guest makes other accesses than to say what it writes"
        );
        Ok(())
    }
}

impl Session {
    /// Harvests once. RAM outside of the window, but for `besides`, must be clean.
    ///
    /// # Errors
    ///
    /// It is not, or nothing can be harvested.
    pub fn harvest(
        &mut self,
        writers: &Writers,
        tracker: &DirtyTracker,
        besides: &[RamRange],
    ) -> Result<usize> {
        let begin = writers.tick();
        let harvest = tracker.harvest()?;
        let end = writers.tick();
        let mut pages = HashSet::new();
        for dirty in harvest.iter().filter(|dirty| !besides.contains(&dirty.range())) {
            ensure!(dirty.range() == WINDOW, "{} pages of {} are dirty", dirty.count(), dirty.range());
            pages.extend(dirty.addresses().map(|address| (address - WINDOW.start) / PAGE));
        }
        let count = pages.len();
        self.harvests.push(Harvest { begin, end, pages });
        Ok(count)
    }

    /// Compares all harvests with all writes, and those from number `exact` on also for pages that nobody wrote to.
    ///
    /// # Errors
    ///
    /// A write is in no harvest that it could be in, or a harvest has a page that nobody wrote to.
    pub fn check(&self, writers: &Writers, exact: usize) -> Result<()> {
        let mut allowed: Vec<HashSet<u64>> = self.harvests.iter().map(|_| HashSet::new()).collect();
        let mut checked = 0;
        for writer in 0..writers.written.len() {
            let written = writers.of(writer);
            for &Write { page, before, after } in &written.done {
                let possible = self.possible(before, after);
                for allowed in &mut allowed[possible.clone()] {
                    allowed.insert(page);
                }
                let is_certain = before >= self.start.1 && possible.end < self.harvests.len();
                let mut harvests = self.harvests[possible.clone()].iter();
                if is_certain {
                    checked += 1;
                    ensure!(
                        harvests.any(|harvest| harvest.pages.contains(&page)),
                        "writer {writer}: page {page} is in none of the harvests {possible:?}"
                    );
                }
            }
            if let Some((page, before)) = written.current {
                let possible = self.possible(before, u64::MAX);
                for allowed in &mut allowed[possible] {
                    allowed.insert(page);
                }
            }
        }
        ensure!(checked != 0, "no write was certain to be harvested");
        for (number, harvest) in self.harvests.iter().enumerate().skip(exact) {
            let invented: Vec<_> = harvest.pages.difference(&allowed[number]).collect();
            ensure!(invented.is_empty(), "harvest {number} has pages that nobody wrote to: {invented:?}");
        }
        Ok(())
    }

    /// The harvests in which a write can be: from the first that ended after it had begun to the first that began after it.
    fn possible(&self, before: u64, after: u64) -> std::ops::Range<usize> {
        if after < self.start.0 {
            return 0..0;
        }
        let first = self.harvests.partition_point(|harvest| harvest.end <= before);
        let last = self.harvests.partition_point(|harvest| harvest.begin <= after);
        first..(last + 1).min(self.harvests.len())
    }
}

impl ExitHandler for Writers {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {
        self.strange.fetch_add(1, Ordering::Relaxed);
    }

    fn port_write(&self, port: u16, _size: usize, data: &[u8]) -> Option<Deferred> {
        let value = data.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let writer = usize::try_from(value >> 16).unwrap_or(usize::MAX);
        if port == WRITE_PORT && writer < CPUS {
            self.announce(writer, value & 0xffff);
        } else {
            self.strange.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {
        self.strange.fetch_add(1, Ordering::Relaxed);
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        self.strange.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three harvests, at the times 3 to 4, 7 to 8 and 9 to 10.
    fn session(pages: [&[u64]; 3]) -> Session {
        let times = [(3, 4), (7, 8), (9, 10)];
        let harvest = |((begin, end), pages): ((u64, u64), &[u64])| Harvest {
            begin,
            end,
            pages: pages.iter().copied().collect(),
        };
        Session { start: (1, 2), harvests: times.into_iter().zip(pages).map(harvest).collect() }
    }

    fn wrote(page: u64, before: u64, after: u64) -> Writers {
        let writers = Writers::default();
        writers.of(0).done.push(Write { page, before, after });
        writers
    }

    #[test]
    fn a_write_is_in_the_next_harvest_or_in_one_that_it_overlaps() {
        for (harvests, is_right) in
            [([&[][..], &[5][..], &[][..]], true), ([&[], &[], &[5]], false), ([&[5], &[], &[]], false)]
        {
            assert_eq!(session(harvests).check(&wrote(5, 5, 6), 0).is_ok(), is_right, "{harvests:?}");
        }
        // It was going on while the first was made.
        assert!(session([&[5], &[], &[]]).check(&wrote(5, 3, 4), 0).is_ok());
        assert!(session([&[], &[5], &[]]).check(&wrote(5, 3, 4), 0).is_ok());
    }

    #[test]
    fn a_page_that_nobody_wrote_to_is_found() {
        let writers = wrote(5, 5, 6);
        assert!(session([&[], &[5, 6], &[]]).check(&writers, 0).is_err());
        assert!(session([&[6], &[5], &[]]).check(&writers, 0).is_err());
        assert!(session([&[6], &[5], &[]]).check(&writers, 1).is_ok());
    }
}
