//! What both subjects of the doorbell benchmark have in common: what the guests are told, how rings are answered, and what is
//! counted.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use vmm_core::seam::{DoorbellAddress, DoorbellSpace};

use crate::bench::buses::{BENCH_MMIO, BENCH_PORT};

/// Where the guest is told where to ring, how often, and how many of its rings were answered; as in `guests/rings.inc`.
pub const WHERE: usize = 0x9000;
/// See [`WHERE`].
pub const COUNT: usize = 0x9004;
/// See [`WHERE`].
pub const ANSWER: usize = 0x9008;
/// Where the guest says that it has rung so often.
pub const DONE_PORT: u16 = 0xe0;
/// Rings that the guest makes without looking up.
pub const BURST: u32 = 10;
/// What the guest writes.
pub const VALUE: u64 = 7;
/// The pin of the guest `round_trip_irq`.
pub const PIN: u32 = 5;

/// How a ring is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not at all: it stays in the eventfd, where it is counted.
    None,
    /// A thread writes the number of rings into the guest's memory.
    Memory,
    /// A thread raises an interrupt.
    Interrupt,
}

/// A guest that rings, and who takes its rings.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The guest program.
    pub guest: &'static str,
    /// Where it rings.
    pub shape: DoorbellAddress,
    /// Whether KVM takes the rings; otherwise each exits to user space.
    pub is_in_kernel: bool,
    /// What they are answered by.
    pub answer: Answer,
}

impl Way {
    /// Rings of four bytes in `space` that KVM takes if they are as the width and the value of `kernel`, if any.
    #[must_use]
    pub fn new(space: DoorbellSpace, kernel: Option<(u32, Option<u64>)>, answer: Answer) -> Self {
        let (width, datamatch) = kernel.unwrap_or((4, None));
        let address = if space == DoorbellSpace::Pio { BENCH_PORT.into() } else { BENCH_MMIO };
        let guest = match answer {
            Answer::None => "rings",
            Answer::Memory => "round_trip",
            Answer::Interrupt => "round_trip_irq",
        };
        let shape = DoorbellAddress { space, address, width, datamatch };
        Self { guest, shape, is_in_kernel: kernel.is_some(), answer }
    }

    /// Hypercalls in the place of rings.
    #[must_use]
    pub fn hypercalls() -> Self {
        Self { guest: "hypercalls", ..Self::new(DoorbellSpace::Pio, Some((4, None)), Answer::None) }
    }
}

/// How often the guest has rung, and what the host has seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Rings of the guest.
    pub rung: u64,
    /// Those that its eventfd had counted at the end; those that were answered are not among them.
    pub counted: u64,
    /// Returns of `KVM_RUN` for rings.
    pub returns: u64,
}

/// A machine whose guest rings.
pub trait Rings {
    /// Lets the guest ring so many times, a multiple of [`BURST`]; returns the time that it took.
    ///
    /// # Errors
    ///
    /// The vCPU ends, or the guest does something else.
    fn step(&mut self, rings: u32) -> Result<Duration>;
    /// The times, in microseconds, from one ring's arrival to the next one's in the last step, if rings are answered.
    fn trips(&self) -> Vec<f64>;
    /// What was counted.
    ///
    /// # Errors
    ///
    /// The eventfd cannot be read.
    fn counted(&self) -> Result<Counted>;
}

/// When rings arrived. One is noted before it is answered, so that all of a step are there when the guest is done.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<Vec<Instant>>);

impl Arrivals {
    /// One has arrived.
    pub fn note(&self) {
        self.lock().push(Instant::now());
    }

    /// Begins a step of `rings` rings.
    pub fn begin(&self, rings: u32) {
        let mut arrivals = self.lock();
        arrivals.clear();
        arrivals.reserve(rings as usize);
    }

    /// The microseconds in between.
    #[must_use]
    pub fn trips(&self) -> Vec<f64> {
        self.lock().windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e6).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_are_between_the_arrivals_of_one_step() {
        let arrivals = Arrivals::default();
        arrivals.note();
        arrivals.begin(3);
        (0..3).for_each(|_| arrivals.note());
        assert_eq!(arrivals.trips().len(), 2);
        arrivals.begin(1);
        assert!(arrivals.trips().is_empty());
    }
}
