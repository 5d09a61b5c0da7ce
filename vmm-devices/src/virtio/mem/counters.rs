//! What a memory device has done.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counted on the device's worker, read by anybody. Relaxed: the numbers are about different moments.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) plugs: Counter,
    pub(super) unplugs: Counter,
    pub(super) states: Counter,
    pub(super) beyond: Counter,
    pub(super) busy: Counter,
    pub(super) errors: Counter,
}

/// Sizes of a memory device and what was counted of it, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemCounts {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Bytes of all blocks there can be.
    pub region_bytes: u64,
    /// Bytes that the guest is asked to have plugged.
    pub requested_bytes: u64,
    /// Bytes that it has plugged.
    pub plugged_bytes: u64,
    /// Requests by which blocks were plugged.
    pub plugs: u64,
    /// Requests by which blocks were unplugged.
    pub unplugs: u64,
    /// Requests for the state of blocks.
    pub states: u64,
    /// Requests for more than the host has asked for.
    pub beyond_requested: u64,
    /// Requests that could not be served then.
    pub busy: u64,
    /// Requests that break a rule.
    pub broken: u64,
}

/// A number that only one thread at a time changes.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
