//! `Delayed`: the target of kicks on a real thread, with random delays between the steps of the protocol.

use std::cell::Cell;
use std::hint;
use std::io;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use vmm_vcpu::{KickTarget, ThreadTarget, Vcpu};

use super::sched::RunDelay;

/// One step in so many gives its CPU away, and one in so many takes its time. Neither sleeps: the time that a thread does
/// not run is all in its run delay.
const YIELDS: u64 = 32;
const SPINS: u64 = 256;

/// How long a step takes its time.
const SPIN: Duration = Duration::from_micros(20);

thread_local! {
    /// The state of this thread's generator (xorshift64), seeded by its address.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

fn random() -> u64 {
    RANDOM.with(|state| {
        let mut x = match state.get() {
            0 => std::ptr::from_ref(state).addr() as u64,
            x => x,
        };
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    })
}

/// Waits at random. See the module documentation.
pub(super) struct Delayed {
    target: ThreadTarget,
    thread: OnceLock<RunDelay>,
}

impl Delayed {
    pub(super) fn new(target: ThreadTarget) -> Self {
        Self { target, thread: OnceLock::new() }
    }

    /// As that of the target.
    pub(super) fn settle(&self, vcpu: &Vcpu) -> io::Result<()> {
        self.target.settle(vcpu)?;
        let _ = self.thread.set(RunDelay::open()?);
        Ok(())
    }

    /// How long the vCPU's thread has waited for a CPU.
    pub(super) fn delay(&self) -> Result<Duration> {
        self.thread.get().map_or(Ok(Duration::ZERO), RunDelay::get)
    }
}

impl KickTarget for Delayed {
    fn arm(&self) {
        self.between_steps();
        self.target.arm();
    }

    fn signal(&self) {
        self.target.signal();
    }

    fn arm_own(&self) {
        self.target.arm_own();
        self.between_steps();
    }

    fn disarm(&self) -> bool {
        self.between_steps();
        let kicked = self.target.disarm();
        self.between_steps();
        kicked
    }

    fn between_steps(&self) {
        match random() {
            x if x % SPINS == 0 => {
                let start = Instant::now();
                while start.elapsed() < SPIN {
                    hint::spin_loop();
                }
            }
            x if x % YIELDS == 0 => thread::yield_now(),
            _ => {}
        }
    }
}
