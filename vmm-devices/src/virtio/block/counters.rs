//! What a disk has done: requests, bytes, failures and how long they took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::engine::Operation;

/// Classes of durations: the class `n` counts what took less than `2^n` microseconds, and not less than half of that; the last
/// one also what took longer.
pub const LATENCY_CLASSES: usize = 32;

/// How many took how long; see [`LATENCY_CLASSES`].
pub type Latency = [u64; LATENCY_CLASSES];

/// Of one kind of request.
#[derive(Debug, Default)]
struct Kind {
    succeeded: AtomicU64,
    bytes: AtomicU64,
    latency: [AtomicU64; LATENCY_CLASSES],
}

/// Counted by the queues, read by anybody. Relaxed: the numbers are about different moments.
#[derive(Debug, Default)]
pub(super) struct Counters {
    read: Kind,
    write: Kind,
    flush: Kind,
    discard: Kind,
    write_zeroes: Kind,
    failed: AtomicU64,
    refused: AtomicU64,
    throttled: AtomicU64,
    notifications: AtomicU64,
    interrupts: AtomicU64,
    /// Counted by the engines.
    pub(super) calls: Arc<AtomicU64>,
}

/// What was counted of a disk, at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
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
    /// Bytes of the discards.
    pub bytes_discarded: u64,
    /// Bytes of the requests for zeros.
    pub bytes_zeroed: u64,
    /// Requests that the host failed.
    pub failed: u64,
    /// Requests that the guest should not have made.
    pub refused: u64,
    /// Requests that waited for the rate limiter.
    pub throttled: u64,
    /// Rings of the doorbells, those that came together included.
    pub notifications: u64,
    /// Interrupts for requests that have ended.
    pub interrupts: u64,
    /// System calls that gave requests to the host: of io_uring one for many, of threads one for each, or for each piece of the
    /// zeros that are written.
    pub host_calls: u64,
    /// How long reads took that the host was asked for, from the ring to the status, whatever came of them.
    pub read_latency_hist: Latency,
    /// The same of writes.
    pub write_latency_hist: Latency,
    /// The same of flushes.
    pub flush_latency_hist: Latency,
    /// The same of discards.
    pub discard_latency_hist: Latency,
    /// The same of requests for zeros.
    pub write_zeroes_latency_hist: Latency,
}

impl Counters {
    pub(super) fn ended(&self, operation: Operation, length: u64, succeeded: bool, took: Duration) {
        let kind = match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
            Operation::Discard => &self.discard,
            Operation::WriteZeroes { .. } => &self.write_zeroes,
        };
        let class = 128_u32.saturating_sub(took.as_micros().leading_zeros()) as usize;
        if let Some(class) = kind.latency.get(class).or(kind.latency.last()) {
            add(class, 1);
        }
        if succeeded {
            add(&kind.succeeded, 1);
            add(&kind.bytes, length);
        } else {
            add(&self.failed, 1);
        }
    }

    pub(super) fn refused(&self) {
        add(&self.refused, 1);
    }

    pub(super) fn throttled(&self) {
        add(&self.throttled, 1);
    }

    pub(super) fn notified(&self, rings: u64) {
        add(&self.notifications, rings);
    }

    pub(super) fn interrupted(&self) {
        add(&self.interrupts, 1);
    }

    pub(super) fn counts(&self) -> BlockCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let latency = |kind: &Kind| kind.latency.each_ref().map(load);
        BlockCounts {
            reads: load(&self.read.succeeded),
            writes: load(&self.write.succeeded),
            flushes: load(&self.flush.succeeded),
            discards: load(&self.discard.succeeded),
            write_zeroes: load(&self.write_zeroes.succeeded),
            bytes_read: load(&self.read.bytes),
            bytes_written: load(&self.write.bytes),
            bytes_discarded: load(&self.discard.bytes),
            bytes_zeroed: load(&self.write_zeroes.bytes),
            failed: load(&self.failed),
            refused: load(&self.refused),
            throttled: load(&self.throttled),
            notifications: load(&self.notifications),
            interrupts: load(&self.interrupts),
            host_calls: load(&self.calls),
            read_latency_hist: latency(&self.read),
            write_latency_hist: latency(&self.write),
            flush_latency_hist: latency(&self.flush),
            discard_latency_hist: latency(&self.discard),
            write_zeroes_latency_hist: latency(&self.write_zeroes),
        }
    }
}

/// Adds to a counter that others write too.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_class_of_the_next_power_of_two() {
        let counters = Counters::default();
        for (micros, class) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1 << 30, 31), (u64::MAX, 31)] {
            let before = counters.counts().flush_latency_hist[class];
            counters.ended(Operation::Flush, 0, true, Duration::from_micros(micros));
            assert_eq!(counters.counts().flush_latency_hist[class], before + 1, "{micros}");
        }
        assert_eq!((counters.counts().flushes, counters.counts().bytes_read), (7, 0));
        assert_eq!(counters.counts().read_latency_hist, [0; LATENCY_CLASSES]);
    }

    #[test]
    fn what_failed_has_moved_no_bytes_and_has_taken_its_time() {
        let counters = Counters::default();
        counters.ended(Operation::Read, 512, true, Duration::ZERO);
        counters.ended(Operation::Write, 1024, true, Duration::ZERO);
        counters.ended(Operation::WriteZeroes { unmap: true }, 2048, true, Duration::ZERO);
        counters.ended(Operation::Read, 4096, false, Duration::ZERO);
        let counts = counters.counts();
        assert_eq!((counts.reads, counts.bytes_read, counts.bytes_written, counts.failed), (1, 512, 1024, 1));
        assert_eq!((counts.write_zeroes, counts.bytes_zeroed), (1, 2048));
        assert_eq!((counts.read_latency_hist[0], counts.write_latency_hist[0]), (2, 1));
    }
}
