//! What a balloon has done: pages, bytes and what became of them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counted on the device's worker, read by anybody. Relaxed: the numbers are about different moments.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) inflated: Counter,
    pub(super) deflated: Counter,
    pub(super) refused: Counter,
    pub(super) reported: Counter,
    pub(super) hinted: Counter,
    pub(super) returned: Counter,
    pub(super) kept: Counter,
    pub(super) partial: Counter,
    pub(super) failed: Counter,
    pub(super) statistics: Counter,
    pub(super) broken: Counter,
}

/// What was counted of a balloon, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BalloonCounts {
    /// Pages of 4 KiB that the guest has put into the balloon.
    pub inflated_pages: u64,
    /// Pages of 4 KiB that it has taken out of it.
    pub deflated_pages: u64,
    /// Pages of 4 KiB that it has named and that are not in its RAM, or are too many for one request.
    pub refused_pages: u64,
    /// Bytes that it has reported as free.
    pub reported_bytes: u64,
    /// Bytes that it has hinted at.
    pub hinted_bytes: u64,
    /// Bytes that were given back to the host.
    pub returned_bytes: u64,
    /// Bytes that could not be: a page of the host that they are only a part of, or contents that the guest relies on.
    pub kept_bytes: u64,
    /// Bytes that are in the balloon now, in pages of the host of which the guest has another part.
    pub partial_bytes: u64,
    /// Bytes that the host has not taken back.
    pub failed_bytes: u64,
    /// How often statistics came.
    pub statistics: u64,
    /// Buffers that break a rule.
    pub broken: u64,
}

/// A number that only one thread at a time changes.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn counts(&self) -> BalloonCounts {
        BalloonCounts {
            inflated_pages: self.inflated.get(),
            deflated_pages: self.deflated.get(),
            refused_pages: self.refused.get(),
            reported_bytes: self.reported.get(),
            hinted_bytes: self.hinted.get(),
            returned_bytes: self.returned.get(),
            kept_bytes: self.kept.get(),
            partial_bytes: self.partial.get(),
            failed_bytes: self.failed.get(),
            statistics: self.statistics.get(),
            broken: self.broken.get(),
        }
    }
}
