//! What a disk has done: requests, bytes, failures and how long they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::engine::Operation;

/// Classes of durations: the class `n` counts what took less than `2^n` microseconds, and not less than half of that; the last
/// one also what took longer.
pub const LATENCY_CLASSES: usize = 32;

/// Counted by the queues, read by anybody. Relaxed: the numbers are about different moments.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    write_zeroes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    throttled: AtomicU64,
    latency: [AtomicU64; LATENCY_CLASSES],
}

/// What was counted of a disk, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards that succeeded.
    pub discards: u64,
    /// Requests for zeros that succeeded.
    pub write_zeroes: u64,
    /// Bytes of the reads.
    pub bytes_read: u64,
    /// Bytes of the writes.
    pub bytes_written: u64,
    /// Requests that the host failed.
    pub failed: u64,
    /// Requests that the guest should not have made.
    pub refused: u64,
    /// Requests that waited for the rate limiter.
    pub throttled: u64,
    /// How many of those that the host was asked for took how long, from the ring to the status; see [`LATENCY_CLASSES`].
    pub latency: [u64; LATENCY_CLASSES],
}

impl Counters {
    pub(super) fn ended(&self, operation: Operation, length: u64, succeeded: bool, took: Duration) {
        let class = 128_u32.saturating_sub(took.as_micros().leading_zeros()) as usize;
        add(self.latency.get(class).or(self.latency.last()), 1);
        if !succeeded {
            add(Some(&self.failed), 1);
            return;
        }
        let (count, bytes) = match operation {
            Operation::Read => (&self.reads, Some(&self.bytes_read)),
            Operation::Write => (&self.writes, Some(&self.bytes_written)),
            Operation::Flush => (&self.flushes, None),
            Operation::Discard => (&self.discards, None),
            Operation::WriteZeroes { .. } => (&self.write_zeroes, None),
        };
        add(Some(count), 1);
        add(bytes, length);
    }

    pub(super) fn refused(&self) {
        add(Some(&self.refused), 1);
    }

    pub(super) fn throttled(&self) {
        add(Some(&self.throttled), 1);
    }

    pub(super) fn counts(&self) -> BlockCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockCounts {
            reads: load(&self.reads),
            writes: load(&self.writes),
            flushes: load(&self.flushes),
            discards: load(&self.discards),
            write_zeroes: load(&self.write_zeroes),
            bytes_read: load(&self.bytes_read),
            bytes_written: load(&self.bytes_written),
            failed: load(&self.failed),
            refused: load(&self.refused),
            throttled: load(&self.throttled),
            latency: self.latency.each_ref().map(load),
        }
    }
}

fn add(counter: Option<&AtomicU64>, count: u64) {
    if let Some(counter) = counter {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_class_of_the_next_power_of_two() {
        let counters = Counters::default();
        for (micros, class) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1 << 30, 31), (u64::MAX, 31)] {
            let before = counters.counts().latency[class];
            counters.ended(Operation::Flush, 0, true, Duration::from_micros(micros));
            assert_eq!(counters.counts().latency[class], before + 1, "{micros}");
        }
        assert_eq!((counters.counts().flushes, counters.counts().bytes_read), (7, 0));
    }

    #[test]
    fn what_failed_has_moved_no_bytes() {
        let counters = Counters::default();
        counters.ended(Operation::Read, 512, true, Duration::ZERO);
        counters.ended(Operation::Write, 1024, true, Duration::ZERO);
        counters.ended(Operation::Read, 4096, false, Duration::ZERO);
        let counts = counters.counts();
        assert_eq!((counts.reads, counts.bytes_read, counts.bytes_written, counts.failed), (1, 512, 1024, 1));
    }
}
