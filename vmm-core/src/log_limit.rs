//! `LogLimit`: bounds how often one place in the code may log what a guest provokes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// Messages that pass in a window.
const BURST: u64 = 10;

/// One limiter a call site. Lets ten messages through in ten seconds and counts the others.
///
/// The counters are relaxed: between two windows a message more or less may pass when threads race.
#[derive(Debug)]
pub struct LogLimit {
    start: Instant,
    window: AtomicU64,
    passed: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            window: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }
}

impl LogLimit {
    /// Whether to log now; `Some(n)`: yes, and `n` messages were left out since the last one.
    pub fn permit(&self) -> Option<u64> {
        self.permit_at(self.start.elapsed())
    }

    fn permit_at(&self, elapsed: Duration) -> Option<u64> {
        // Windows are counted from 1, so that the first call opens one.
        let window = 1 + elapsed.as_secs() / WINDOW.as_secs();
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.passed.store(0, Ordering::Relaxed);
        }
        if self.passed.fetch_add(1, Ordering::Relaxed) < BURST {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_b14_a_flood_passes_ten_messages_a_window_and_the_rest_is_counted() {
        let limit = LogLimit::default();
        let passed = (0..1_000).filter(|_| limit.permit_at(Duration::ZERO).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.permit_at(WINDOW), Some(990));
        assert_eq!(limit.permit_at(WINDOW), Some(0));
    }
}
