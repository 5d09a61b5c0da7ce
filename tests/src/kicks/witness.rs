//! `Witness`: when a CPU of this host stood still, as a thread on each of them sees it.
//!
//! A host that is itself a virtual machine loses a CPU now and then for many milliseconds. Its kernel counts that for the CPU
//! at best, in ticks (`steal`), and not for the thread that had the CPU and seems to have run. But nothing else ran there
//! either: a thread that wanted to wake on that CPU wakes late, without having waited for anybody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::sched::RunDelay;

/// How long the threads sleep at a time.
const NAP: Duration = Duration::from_millis(1);

/// A nap this much too long is one in which the CPU stood still; timers are late by less on a CPU that runs.
const STOOD: Duration = Duration::from_millis(2);

/// From when to when a CPU did nothing, or a little longer: by a nap at most.
#[derive(Clone, Copy, Debug)]
struct Still {
    from: Instant,
    to: Instant,
}

/// A thread for each CPU of this process. Dropped, it leaves them to end by themselves.
pub(super) struct Witness {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Still>>>>,
}

impl Witness {
    /// Begins to watch.
    pub(super) fn watch() -> io::Result<Self> {
        let mine = sched_getaffinity(None)?;
        let mut witness = Self { over: Arc::default(), threads: Vec::new() };
        for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| mine.is_set(cpu)) {
            let over = Arc::clone(&witness.over);
            let thread = thread::Builder::new().name(format!("witness{cpu}"));
            witness.threads.push(thread.spawn(move || watch(cpu, &over))?);
        }
        Ok(witness)
    }

    /// What was seen.
    pub(super) fn tell(mut self) -> Result<Stood> {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            all.extend(thread.join().map_err(|_| anyhow!("a witness panicked"))??);
        }
        all.sort_by_key(|still| still.from);
        Ok(Stood(all))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn watch(cpu: usize, over: &AtomicBool) -> Result<Vec<Still>> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).context("the CPU of a witness")?;
    let mut seen = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let (waited, from) = (RunDelay::of_this_thread()?, Instant::now());
        thread::sleep(NAP);
        let to = Instant::now();
        // It waits for others at the end of a nap, when it has woken.
        let to = to.checked_sub(RunDelay::of_this_thread()?.saturating_sub(waited)).unwrap_or(to);
        if to.saturating_duration_since(from) > NAP + STOOD {
            seen.push(Still { from, to });
        }
    }
    Ok(seen)
}

/// When some CPU stood still, in order.
#[derive(Debug)]
pub(super) struct Stood(Vec<Still>);

impl Stood {
    /// How much of the time between `from` and `to` at least one CPU stood still.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Duration {
        let (mut sum, mut counted) = (Duration::ZERO, from);
        for still in &self.0 {
            let (begin, end) = (still.from.max(counted), still.to.min(to));
            sum += end.saturating_duration_since(begin);
            counted = counted.max(end);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_cpus_stand_still_at_once_counts_once_and_only_within_the_time_asked_for() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let still = |from, to| Still { from: at(from), to: at(to) };
        let stood = Stood(vec![still(0, 10), still(5, 20), still(6, 8), still(30, 40), still(90, 95)]);
        let between = |from, to| stood.between(at(from), at(to)).as_millis();
        assert_eq!(between(0, 100), 20 + 10 + 5);
        assert_eq!(between(8, 35), 12 + 5);
        assert_eq!(between(21, 29), 0);
        assert_eq!(between(50, 60), 0);
    }
}
