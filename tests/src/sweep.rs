//! `Sweep`: a guest that writes to as many pages as it is told, on the calling thread. Its side is in
//! `tests/guests/dirty_sweep.S`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use vmm_core::{Deferred, DirtyMechanism};
use vmm_memory::{AddressSpace, DirtyTracker, RamRange};
use vmm_vcpu::{Counters, ExitHandler, Requests, Shared, Vcpu, VcpuEnd, run};

use crate::bench::scripted_exits::NoTarget;
use crate::small_machine::SmallMachine;

const PAGE: u32 = 4096;
/// As the guest has it.
const WINDOW: u64 = 0x4000_0000;
/// Enough for the guest.
const RAM_SIZE: u64 = 4 << 20;

/// See the module documentation.
pub struct Sweep {
    // Dropped in this order: the memory goes after the vCPU.
    vcpu: Vcpu,
    orders: Orders,
    /// Knows what it has written.
    pub tracker: Arc<DirtyTracker>,
    /// Its memory, for those who write beside the guest.
    pub memory: AddressSpace,
}

impl Sweep {
    /// Makes a machine with a window of so many pages, all of which have been written to, and the guest from the directory
    /// `guests`.
    ///
    /// # Errors
    ///
    /// Whatever the parts refuse.
    pub fn new(guests: &Path, pages: u32, mechanism: DirtyMechanism) -> Result<Self> {
        let window = RamRange { start: WINDOW, size: u64::from(pages) * u64::from(PAGE) };
        let guest = guests.join("dirty_sweep.elf");
        let (machine, tracker) = SmallMachine::boot_tracked((RAM_SIZE, window), &guest, 1, mechanism)?;
        let (vcpu, memory) = machine.into_one();
        let shared = Arc::new(Shared::new(NoTarget, Requests::none()));
        let orders = Orders { shared, pages, order: Default::default() };
        let mut sweep = Self { vcpu, orders, tracker, memory };
        sweep.write(pages)?;
        Ok(sweep)
    }

    /// Has the guest write to so many pages, at least one, spread over the window; how long that took.
    ///
    /// # Errors
    ///
    /// The guest ends, or does something else.
    pub fn write(&mut self, pages: u32) -> Result<Duration> {
        let Orders { shared, pages: all, order } = &self.orders;
        ensure!((1..=*all).contains(&pages), "{pages} of {all} pages");
        for (order, value) in order.iter().zip([pages, all / pages * PAGE]) {
            order.store(value, Ordering::Relaxed);
        }
        let start = Instant::now();
        let end = run(&mut self.vcpu, &self.orders, shared);
        let time = start.elapsed();
        let VcpuEnd::Stopped = end else { bail!("the vCPU ended: {end:?}") };
        shared.kicks().withdraw(Requests::STOP);
        Ok(time)
    }

    /// What the run loop has counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.orders.shared.counters()
    }
}

/// What the guest is told: a number of pages and a distance, and when both are done, nothing, with a stop.
struct Orders {
    shared: Arc<Shared<Vcpu, NoTarget>>,
    pages: u32,
    order: [AtomicU32; 2],
}

impl ExitHandler for Orders {
    fn port_read(&self, _port: u16, _size: usize, data: &mut [u8]) {
        let [pages, distance] = &self.order;
        let value = match pages.swap(0, Ordering::Relaxed) {
            0 => distance.swap(0, Ordering::Relaxed),
            pages => pages,
        };
        if value == 0 {
            self.shared.kicks().kick(Requests::STOP);
        }
        for (to, byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = byte;
        }
    }

    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        None
    }

    fn mmio_read(&self, _address: u64, _data: &mut [u8]) {}

    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}
