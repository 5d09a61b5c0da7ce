//! `Barrier`: the expensive half of a store-load fence between many readers and a rare writer.
//!
//! A reader stores, and then loads what the writer stores; the writer stores, and then loads what readers store. One of
//! the two must see the other, so each needs a full fence in between. With membarrier(2) the reader's is left to the
//! compiler ([`light`]), and the writer's ([`Barrier::pass`]) interrupts every CPU that runs a thread of this process; a
//! thread that does not run has had its fence when it was switched out. A vCPU in the guest is such a running thread: the
//! interrupt is an exit that KVM serves itself.

use std::sync::atomic::compiler_fence;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sync::{AtomicUsize, Mutex, Ordering, fence, lock};

/// How long to wait with a barrier that the kernel has refused. It does so without memory, and in a process that has
/// forbidden itself the call after it had registered: a filter of system calls has to leave it that.
const RETRY: Duration = Duration::from_millis(1);

/// The reader's fence. `fenced`: the readers do it themselves, as no kernel does it for them.
#[inline]
pub(crate) fn light(fenced: bool) {
    if fenced {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// The writer's fence.
#[derive(Debug)]
pub(crate) struct Barrier {
    fenced: bool,
    /// Interrupting barriers that have begun. Raised under the lock of `pace` only.
    begun: AtomicUsize,
    pace: Mutex<Pace>,
}

impl Barrier {
    /// One that leaves the readers without a fence, where the kernel can do that.
    pub(crate) fn new() -> Self {
        Self::of(!kernel::register())
    }

    fn of(fenced: bool) -> Self {
        Self { fenced, begun: AtomicUsize::new(0), pace: Mutex::new(Pace::default()) }
    }

    /// One for readers that have fences of their own.
    #[cfg(test)]
    pub(crate) fn fenced() -> Self {
        Self::of(true)
    }

    /// What readers have to pass to [`light`].
    pub(crate) fn readers_are_fenced(&self) -> bool {
        self.fenced
    }

    /// When it returns, each reader has seen what this thread stored before, or this thread sees what the reader stored
    /// before its [`light`]. May sleep; not to be called under a lock that a reader takes.
    pub(crate) fn pass(&self) {
        fence(Ordering::SeqCst);
        if self.fenced {
            return;
        }
        let seen = self.begun.load(Ordering::SeqCst);
        let mut pace = lock(&self.pace);
        if self.begun.load(Ordering::SeqCst) != seen {
            // One that began after this call did has ended meanwhile.
            return;
        }
        let too_soon = pace.too_soon(Instant::now());
        if too_soon > Duration::ZERO {
            sleep(too_soon);
        }
        pace.note(Instant::now());
        self.begun.store(seen.wrapping_add(1), Ordering::SeqCst);
        // Nothing but the barrier makes it safe to go on.
        let mut is_said = false;
        while let Err(error) = kernel::interrupt() {
            if !std::mem::replace(&mut is_said, true) {
                tracing::error!(%error, "the kernel refuses a memory barrier that it has promised");
            }
            sleep(RETRY);
        }
    }
}

/// How often barriers may interrupt. Whoever changes tables as fast as he can, a guest that moves its BARs included, must not
/// cost the other vCPUs much; those who wait at the same time share a barrier. After a rest, a few that follow each other do
/// not wait.
#[derive(Debug, Default)]
struct Pace {
    /// When there will have been one [`PERIOD`] for each barrier so far.
    even: Option<Instant>,
}

/// From one barrier to the next, in the long run. A change with its barrier costs a vCPU in the guest some 10 us, which is then
/// a hundredth of its time.
const PERIOD: Duration = Duration::from_millis(1);

/// So many barriers follow each other at once: more than attaching a device needs.
const BURST: u32 = 10;

impl Pace {
    /// How long a barrier has to wait at `now`.
    fn too_soon(&self, now: Instant) -> Duration {
        let ahead = self.even.map_or(Duration::ZERO, |even| even.saturating_duration_since(now));
        ahead.saturating_sub(PERIOD * (BURST - 1))
    }

    /// A barrier begins at `now`.
    fn note(&mut self, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + PERIOD);
    }
}

#[cfg(not(any(loom, miri)))]
mod kernel {
    use std::io;

    use rustix::thread::{MembarrierCommand, membarrier};

    /// Asks for barriers; whether they can be had.
    pub(super) fn register() -> bool {
        membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    }

    /// A full fence on every thread of this process.
    pub(super) fn interrupt() -> io::Result<()> {
        Ok(membarrier(MembarrierCommand::PrivateExpedited)?)
    }
}

/// Neither loom nor miri knows such a barrier: their readers have fences.
#[cfg(any(loom, miri))]
mod kernel {
    use std::io;

    pub(super) fn register() -> bool {
        false
    }

    pub(super) fn interrupt() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// When each of `count` barriers begins, if somebody always wants the next one at once, counted from `rested`.
    fn starts(pace: &mut Pace, rested: Instant, count: u32) -> Vec<Duration> {
        let mut now = rested;
        let barrier = |_| {
            now += pace.too_soon(now);
            pace.note(now);
            now - rested
        };
        (0..count).map(barrier).collect()
    }

    #[test]
    fn after_a_rest_a_few_barriers_do_not_wait_and_the_others_do() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for rested in [now, now + Duration::from_secs(1)] {
            let expected = (1..=3 * BURST).map(|number| PERIOD * number.saturating_sub(BURST));
            assert_eq!(starts(&mut pace, rested, 3 * BURST), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_rest_gives_no_more_than_one_burst() {
        let mut pace = Pace::default();
        let now = Instant::now();
        starts(&mut pace, now, BURST);
        assert_eq!(pace.too_soon(now + PERIOD / 2), PERIOD / 2);
        assert_eq!(pace.too_soon(now + PERIOD), Duration::ZERO);
        let starts = starts(&mut pace, now + PERIOD * 1_000, BURST + 1);
        assert_eq!(starts[BURST as usize], PERIOD);
    }
}
