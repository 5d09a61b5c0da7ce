//! `LiveBus`: a bus that changes all the time, and accesses that are checked against what was on it while they ran.
//!
//! The bus goes through versions in a fixed circle: nothing; a device at place A; another in its place; the same moved to
//! place B; nothing. A device reads as the version that made it. An access that ran from version `first` to version `last`
//! must have read what one of these versions gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vmm_core::Deferred;
use vmm_devices::{Bus, BusDevice, BusError};
use vmm_vcpu::ExitHandler;

use crate::bench::buses::BENCH_MMIO;

/// Where the device is, and where it is moved to.
pub const PLACES: [u64; 2] = [BENCH_MMIO, BENCH_MMIO + 0x1000];
const LENGTH: u64 = 0x10;

/// What a hole reads as.
const ONES: u32 = u32::MAX;

/// What was seen wrong.
#[derive(Debug, Default)]
pub struct Faults {
    /// Accesses that read what was not there at any moment of them.
    pub wrong: AtomicU64,
    /// Calls into devices whose removal had been waited for.
    pub late: AtomicU64,
}

/// A device that knows which version made it and whether it may still be called.
struct Witness {
    version: u32,
    gone: AtomicBool,
    faults: Arc<Faults>,
}

impl BusDevice for Witness {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if self.gone.load(Ordering::SeqCst) {
            self.faults.late.fetch_add(1, Ordering::Relaxed);
        }
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.version.to_le_bytes();
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// The bus, and its versions.
pub struct LiveBus {
    bus: Bus,
    /// The version that every access that begins now reads, or a later one. Set after the change.
    first: AtomicU32,
    /// The latest version that an access may have read. Set before the change.
    last: AtomicU32,
    faults: Arc<Faults>,
    accesses: AtomicU64,
}

impl Default for LiveBus {
    fn default() -> Self {
        Self {
            bus: Bus::new("live"),
            first: AtomicU32::new(0),
            last: AtomicU32::new(0),
            faults: Arc::default(),
            accesses: AtomicU64::new(0),
        }
    }
}

/// What `place` reads as in `version`.
fn content(version: u32, place: usize) -> u32 {
    match (version % 4, place) {
        (1 | 2, 0) => version,
        (3, 1) => version - 1,
        _ => ONES,
    }
}

impl LiveBus {
    /// What was wrong so far.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Accesses so far.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// One checked read of four bytes.
    pub fn read(&self, address: u64, data: &mut [u8; 4]) {
        let first = self.first.load(Ordering::SeqCst);
        self.bus.read(address, data.len(), data);
        let last = self.last.load(Ordering::SeqCst);
        let read = u32::from_le_bytes(*data);
        let place = usize::from(address != PLACES[0]);
        if !(first..=last).any(|version| content(version, place) == read) {
            self.faults.wrong.fetch_add(1, Ordering::Relaxed);
        }
        self.accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// Goes through the circle once, waiting for each device that has gone, until `is_over`; returns the changes made.
    ///
    /// # Errors
    ///
    /// The bus refuses a change; none of these may be.
    pub fn change_until(&self, is_over: impl Fn() -> bool) -> Result<u32, BusError> {
        let witness = |version| {
            let faults = Arc::clone(&self.faults);
            Arc::new(Witness { version, gone: AtomicBool::new(false), faults })
        };
        let [here, there] = PLACES;
        let mut version = 0;
        while !is_over() {
            let (one, other) = (witness(version + 1), witness(version + 2));
            self.step(&mut version, || self.bus.insert(here, LENGTH, "one", one.clone()))?;
            let retired = self.step(&mut version, || self.bus.replace(here, "other", other.clone()))?;
            // On this thread no read section is open.
            let _ = retired.wait();
            one.gone.store(true, Ordering::SeqCst);
            // Nobody waits: the device goes on answering elsewhere.
            drop(self.step(&mut version, || self.bus.move_range(here, there))?);
            let retired = self.step(&mut version, || self.bus.remove(there))?;
            let _ = retired.wait();
            other.gone.store(true, Ordering::SeqCst);
        }
        Ok(version)
    }

    /// One change, between its two announcements.
    fn step<T>(
        &self,
        version: &mut u32,
        change: impl FnOnce() -> Result<T, BusError>,
    ) -> Result<T, BusError> {
        *version += 1;
        self.last.store(*version, Ordering::SeqCst);
        let changed = change()?;
        self.first.store(*version, Ordering::SeqCst);
        Ok(changed)
    }
}

impl ExitHandler for LiveBus {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {}
    fn port_write(&self, _port: u16, _size: usize, _data: &[u8]) -> Option<Deferred> {
        None
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match data.try_into() {
            Ok(data) => self.read(address, data),
            Err(_) => {
                self.faults.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) -> Option<Deferred> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESSES: u64 = 200_000;

    #[test]
    fn every_access_of_two_threads_reads_what_was_there_at_some_moment_of_it() {
        let live = LiveBus::default();
        let changes = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut data = [0; 4];
                    while live.accesses() < ACCESSES {
                        PLACES.iter().for_each(|&place| live.read(place, &mut data));
                    }
                });
            }
            live.change_until(|| live.accesses() >= ACCESSES).unwrap()
        });
        assert!(changes >= 4, "{changes} changes");
        let Faults { wrong, late } = live.faults();
        assert_eq!((wrong.load(Ordering::Relaxed), late.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(live.bus.remove(PLACES[1]).err(), Some(BusError::NotFound(PLACES[1])));
    }

    #[test]
    fn the_check_finds_what_is_not_there_and_who_is_called_too_late() {
        let live = LiveBus::default();
        let faults = Arc::clone(&live.faults);
        let stray = Arc::new(Witness { version: 1, gone: AtomicBool::new(true), faults });
        live.bus.insert(PLACES[0], LENGTH, "stray", stray).unwrap();
        live.read(PLACES[0], &mut [0; 4]);
        let Faults { wrong, late } = live.faults();
        assert_eq!((wrong.load(Ordering::Relaxed), late.load(Ordering::Relaxed)), (1, 1));
    }
}
