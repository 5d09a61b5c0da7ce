//! `Mailbox`: what the kicks of a benchmark are for, and when the vCPU's thread has seen it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use crate::bench::thread_calls::{wait, wake};

/// Who kicks; each may do so at the same time as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicker {
    /// The one who is measured.
    Measured,
    /// Another one.
    Beside,
}

/// The requests of one vCPU, apart from those of the code that is measured, so that raw and own have the same.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Mailbox {
    start: Instant,
    /// A bit for each kicker.
    open: AtomicU32,
    answers: [Answer; 2],
}

#[derive(Debug, Default)]
struct Answer {
    given: AtomicU32,
    /// Since `start`. Ordered by `given`.
    nanoseconds: AtomicU64,
}

impl Mailbox {
    /// Without requests.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), open: AtomicU32::new(0), answers: Default::default() }
    }

    /// Asks, gets the vCPU's attention by `kick`, and waits; says how long it took from just before `kick` to when the
    /// request was seen. `None` if `kick` says that nobody will see it.
    pub(super) fn ask(&self, kicker: Kicker, kick: impl FnOnce() -> bool) -> Option<Duration> {
        self.open.fetch_or(1 << kicker as u32, Ordering::SeqCst);
        let start = self.start.elapsed();
        if !kick() {
            return None;
        }
        let answer = &self.answers[kicker as usize];
        while answer.given.swap(0, Ordering::Acquire) == 0 {
            wait(&answer.given, 0);
        }
        let seen = Duration::from_nanos(answer.nanoseconds.load(Ordering::Relaxed));
        // One who looked by himself may have seen it before the kick.
        Some(seen.saturating_sub(start))
    }

    /// On the vCPU's thread, where it looks at what is wanted. The fence is for those to whom the kick does nothing,
    /// because the vCPU is out of the guest: whoever stored before that it is in the guest sees their request.
    pub(super) fn look(&self) {
        fence(Ordering::SeqCst);
        if self.open.load(Ordering::Relaxed) != 0 {
            self.answer();
        }
    }

    fn answer(&self) {
        let now = self.start.elapsed();
        let open = self.open.swap(0, Ordering::SeqCst);
        for (answer, kicker) in self.answers.iter().zip([Kicker::Measured, Kicker::Beside]) {
            if open & 1 << kicker as u32 != 0 {
                answer.nanoseconds.store(now.as_nanos() as u64, Ordering::Relaxed);
                answer.given.store(1, Ordering::Release);
                wake(&answer.given);
            }
        }
    }
}
