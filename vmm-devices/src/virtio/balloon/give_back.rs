//! `Giver`: gives ranges of guest addresses back to the host, as far as its pages allow.
//!
//! A range is not trusted: what of it is not in guest RAM is left out. The caller has the table for its batch, so that nothing is unmapped
//! meanwhile.

use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_core::LogLimit;
use vmm_memory::{GuestMemory, RamRegion};

use super::PAGE;
use super::counters::Counters;
use super::partial::Partials;
use crate::sync::lock;

/// What the queues of one driver have in common that give memory back.
pub(super) struct Giver {
    counters: Arc<Counters>,
    /// Pages of the host that are in the balloon in part; `None` if the driver does not tell before it uses pages again: what is
    /// noted of them says nothing then. Innermost lock.
    partials: Option<Mutex<Partials>>,
    log: LogLimit,
}

impl Giver {
    /// For a driver that tells before it uses pages again, or does not.
    pub(super) fn new(counters: Arc<Counters>, is_told: bool) -> Self {
        Self { counters, partials: is_told.then(Mutex::default), log: LogLimit::default() }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The guest has put a range of whole pages into the balloon.
    pub(super) fn inflate(&self, memory: &GuestMemory, start: u64, length: u64) {
        let absent = for_each_part(memory, start, length, |part| {
            self.counters.inflated.add(part.length / PAGE);
            match &self.partials {
                Some(partials) if part.region.page_size() > PAGE => self.inflate_partly(partials, part),
                _ => self.discard(part),
            }
        });
        self.counters.refused.add(absent.div_ceil(PAGE));
    }

    /// It has taken a range out of it.
    pub(super) fn deflate(&self, memory: &GuestMemory, start: u64, length: u64) {
        let absent = for_each_part(memory, start, length, |part| {
            self.counters.deflated.add(part.length / PAGE);
            if let Some(partials) = &self.partials
                && part.region.page_size() > PAGE
            {
                let mut partials = lock(partials);
                for piece in part.by_host_page() {
                    partials.take_out(piece.host_page(), piece.pages());
                }
                self.counters.partial.set(partials.waiting().saturating_mul(PAGE));
            }
        });
        self.counters.refused.add(absent.div_ceil(PAGE));
    }

    /// A range is free, and may lose its contents if `may_lose` says so of a region.
    pub(super) fn report(
        &self,
        memory: &GuestMemory,
        start: u64,
        length: u64,
        may_lose: impl Fn(&RamRegion) -> bool,
    ) {
        let absent = for_each_part(memory, start, length, |part| {
            self.counters.reported.add(part.length);
            if may_lose(part.region) {
                self.discard(part);
            } else {
                self.counters.kept.add(part.length);
            }
        });
        self.counters.refused.add(absent.div_ceil(PAGE));
    }

    /// Notes the pages, and gives those of the host back of which all is in the balloon.
    fn inflate_partly(&self, partials: &Mutex<Partials>, part: Part<'_>) {
        let mut partials = lock(partials);
        for piece in part.by_host_page() {
            if partials.put_in(piece.host_page(), piece.pages(), part.region.page_size() / PAGE) {
                self.discard(piece.whole());
            }
        }
        self.counters.partial.set(partials.waiting().saturating_mul(PAGE));
    }

    /// Gives the whole pages of the host that are in `part` back.
    fn discard(&self, part: Part<'_>) {
        let Part { region, offset, length } = part;
        let page = region.page_size();
        let end = offset.saturating_add(length);
        let end = end.saturating_sub(end.checked_rem(page).unwrap_or(0));
        let first = offset.checked_next_multiple_of(page).unwrap_or(end);
        let whole = end.saturating_sub(first);
        self.counters.kept.add(length.saturating_sub(whole));
        if whole == 0 {
            return;
        }
        match region.discard(first, whole) {
            Ok(()) => self.counters.returned.add(whole),
            Err(error) => {
                self.counters.failed.add(whole);
                if let Some(left_out) = self.log.permit() {
                    tracing::error!(error = %error_text(&error), left_out, "memory of the balloon stays with the guest");
                }
            }
        }
    }
}

/// An error with its cause, in one line.
fn error_text(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Where the discard of a long range may be divided: at a multiple of this much, and of the host's pages there. Linux takes some
/// milliseconds for it.
const STEP: u64 = 32 << 20;

/// How many of the `length` bytes at `address` are to be given back at once.
pub(super) fn step(memory: &GuestMemory, address: u64, length: u64) -> u64 {
    let (region, offset) = match memory.to_region_addr(GuestAddress(address)) {
        Some((region, offset)) => (Some(region), offset.0),
        None => (None, address),
    };
    let step = region.map_or(STEP, |region| region.page_size().max(STEP));
    let beyond = offset.checked_rem(step).unwrap_or(0);
    length.min(step.saturating_sub(beyond))
}

/// A part of a range, in one region.
#[derive(Clone, Copy)]
struct Part<'m> {
    region: &'m RamRegion,
    offset: u64,
    length: u64,
}

impl<'m> Part<'m> {
    /// The same, divided where pages of the host begin.
    fn by_host_page(self) -> impl Iterator<Item = Self> + 'm {
        let (page, end) = (self.region.page_size(), self.offset.saturating_add(self.length));
        let mut offset = self.offset;
        std::iter::from_fn(move || {
            let next = offset.saturating_add(1).checked_next_multiple_of(page).unwrap_or(end).min(end);
            let length = next.saturating_sub(offset);
            let piece = Self { offset, length, ..self };
            offset = next;
            (length != 0).then_some(piece)
        })
    }

    /// The guest's address of the page of the host in which it begins.
    fn host_page(&self) -> u64 {
        let within = self.offset.checked_rem(self.region.page_size()).unwrap_or(0);
        self.region.start_addr().0.saturating_add(self.offset).saturating_sub(within)
    }

    /// Which pages of 4 KiB of it, numbered from its beginning.
    fn pages(&self) -> std::ops::Range<u64> {
        let within = self.offset.checked_rem(self.region.page_size()).unwrap_or(0);
        within / PAGE..within.saturating_add(self.length).div_ceil(PAGE)
    }

    /// All of that page.
    fn whole(self) -> Self {
        let length = self.region.page_size();
        let within = self.offset.checked_rem(length).unwrap_or(0);
        Self { offset: self.offset.saturating_sub(within), length, ..self }
    }
}

/// Calls `act` with each part of a range that is in RAM to which the guest may write; returns how many bytes are not.
fn for_each_part<'m>(memory: &'m GuestMemory, start: u64, length: u64, mut act: impl FnMut(Part<'m>)) -> u64 {
    let (mut at, mut absent) = (0_u64, 0_u64);
    while at < length {
        let left = length.saturating_sub(at);
        let found = start.checked_add(at).and_then(|address| memory.to_region_addr(GuestAddress(address)));
        let step = match found {
            Some((region, offset)) => {
                let there = region.len().saturating_sub(offset.0).min(left);
                if region.is_read_only() {
                    absent = absent.saturating_add(there);
                } else {
                    act(Part { region, offset: offset.0, length: there });
                }
                there
            }
            None => {
                let page = PAGE.min(left);
                absent = absent.saturating_add(page);
                page
            }
        };
        // An offset in a region is below its length, so this goes on.
        at = at.saturating_add(step.max(1));
    }
    absent
}
