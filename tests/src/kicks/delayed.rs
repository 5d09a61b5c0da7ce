//! `Delayed`: the target of kicks on a real thread, with random delays between the steps of the protocol.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use vmm_vcpu::{KickTarget, ThreadTarget, Vcpu};

use super::sched::RunDelay;

/// One step in so many is delayed by a yield, and one in so many by a sleep.
const YIELDS: u64 = 32;
const SLEEPS: u64 = 1024;

/// How long the sleep asks for.
const SLEEP: Duration = Duration::from_micros(20);

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
            x if x % SLEEPS == 0 => thread::sleep(SLEEP),
            x if x % YIELDS == 0 => thread::yield_now(),
            _ => {}
        }
    }
}
