//! Ways from a decoded exit to its device, one access at a time, and what an access takes on one thread and on two.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use vmm_devices::{Bus, BusDevice, BusDeviceMut, BusError};

use crate::bench::cpus;

/// Where the first range is, from one range to the next, and the bytes of a range.
const START: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1_0000;
const LENGTH: u64 = 0x1000;

/// Bytes of an access.
const ACCESS: usize = 4;

/// Where the device of range `index` is written to.
#[must_use]
pub fn address(index: u64) -> u64 {
    START + index * STRIDE
}

/// A way to the devices.
pub trait Dispatch: Sync {
    /// A guest's write of four bytes.
    fn write(&self, address: u64, data: &[u8; ACCESS]);
}

/// The measured device: a register on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Register(AtomicU32);

impl BusDevice for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            self.0.store(value, Ordering::Relaxed);
        }
    }
}

/// The same for those who lock around a device.
impl BusDeviceMut for Register {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            *self.0.get_mut() = value;
        }
    }
}

impl Dispatch for Bus {
    #[inline]
    fn write(&self, address: u64, data: &[u8; ACCESS]) {
        // The device defers nothing.
        drop(Bus::write(self, address, ACCESS, data));
    }
}

/// This project's bus with `count` ranges.
///
/// # Errors
///
/// None for a count that fits into the address space.
pub fn bus(count: u64) -> Result<Bus, BusError> {
    let bus = Bus::new("measured");
    for index in 0..count {
        bus.insert(address(index), LENGTH, "measured", Arc::new(Register::default()))?;
    }
    Ok(bus)
}

/// Sorted ranges and the search that the bus has, behind a plain pointer: what no table that can be changed goes below.
pub struct Plain(Vec<(u64, u64, Arc<dyn BusDevice>)>);

impl Plain {
    /// With `count` ranges.
    #[must_use]
    pub fn new(count: u64) -> Self {
        let range = |index| (address(index), LENGTH, Arc::new(Register::default()) as _);
        Self((0..count).map(range).collect())
    }
}

impl Dispatch for Plain {
    #[inline]
    fn write(&self, address: u64, data: &[u8; ACCESS]) {
        let found = if self.0.len() <= 16 {
            self.0.iter().rfind(|range| range.0 <= address)
        } else {
            let after = self.0.partition_point(|range| range.0 <= address);
            after.checked_sub(1).and_then(|index| self.0.get(index))
        };
        if let Some((start, length, device)) = found
            && address - start + ACCESS as u64 <= *length
        {
            device.write(address - start, data);
        }
    }
}

/// A pointer to [`Plain`] ranges that is read anew for each access.
pub struct Pointer<'a>(pub &'a Plain);

impl Dispatch for Pointer<'_> {
    #[inline]
    fn write(&self, address: u64, data: &[u8; ACCESS]) {
        black_box(self).0.write(address, data);
    }
}

/// The first and the last address of a device by its first address.
type Tree<D> = BTreeMap<u64, (u64, D)>;

fn tree<D>(count: u64, device: impl Fn() -> D) -> Tree<D> {
    (0..count).map(|index| (address(index), (address(index) + LENGTH - 1, device()))).collect()
}

fn find<D>(tree: &Tree<D>, address: u64) -> Option<(u64, &D)> {
    let (start, (last, device)) = tree.range(..=address).next_back()?;
    (address <= *last && *last - address >= ACCESS as u64 - 1).then_some((*start, device))
}

/// A reader-writer lock around the table and a lock around each device.
pub struct RwLockAndMutex(RwLock<Tree<Arc<Mutex<dyn BusDeviceMut>>>>);

impl RwLockAndMutex {
    /// With `count` ranges.
    #[must_use]
    pub fn new(count: u64) -> Self {
        Self(RwLock::new(tree(count, || Arc::new(Mutex::new(Register::default())) as _)))
    }
}

impl Dispatch for RwLockAndMutex {
    #[inline]
    fn write(&self, address: u64, data: &[u8; ACCESS]) {
        let tree = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((start, device)) = find(&tree, address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(address - start, data);
        }
    }
}

/// One lock around everything.
pub struct GlobalMutex(Mutex<Tree<Box<dyn BusDeviceMut>>>);

impl GlobalMutex {
    /// With `count` ranges.
    #[must_use]
    pub fn new(count: u64) -> Self {
        Self(Mutex::new(tree(count, || Box::new(Register::default()) as _)))
    }
}

impl Dispatch for GlobalMutex {
    #[inline]
    fn write(&self, address: u64, data: &[u8; ACCESS]) {
        let mut tree = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tree.range_mut(..=address).next_back();
        if let Some((start, (last, device))) = found
            && address <= *last
            && *last - address >= ACCESS as u64 - 1
        {
            device.write(address - start, data);
        }
    }
}

/// What `accesses` writes take on the calling thread.
pub fn one_thread<D: Dispatch + ?Sized>(dispatch: &D, address: u64, accesses: u32) -> Duration {
    let address = black_box(address);
    let start = Instant::now();
    for value in 0..accesses {
        dispatch.write(address, &value.to_le_bytes());
    }
    start.elapsed()
}

/// What `accesses` writes take on each of two threads that make them at the same time, each on a CPU of its own: the longer
/// time.
///
/// # Errors
///
/// This process may not use two CPUs.
pub fn two_threads<D: Dispatch + ?Sized>(
    dispatch: &D,
    addresses: [u64; 2],
    accesses: u32,
) -> Result<Duration, Errno> {
    let mut cpus = cpus::allowed()?.into_iter();
    let ready = AtomicUsize::new(0);
    let ready = &ready;
    thread::scope(|scope| {
        let threads = addresses.map(|address| {
            let cpu = cpus.next();
            scope.spawn(move || {
                cpus::stay_on(cpu.ok_or(Errno::ENODEV)?)?;
                ready.fetch_add(1, Ordering::SeqCst);
                while ready.load(Ordering::SeqCst) < addresses.len() {
                    // The other may not have its CPU yet.
                    thread::yield_now();
                }
                Ok(one_thread(dispatch, address, accesses))
            })
        });
        // A panic of a thread is one of this benchmark.
        let [one, other] = threads.map(|thread| thread.join().unwrap_or(Err(Errno::ECHILD)));
        Ok(one?.max(other?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts what reaches it.
    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Dispatch for Counter {
        fn write(&self, _address: u64, _data: &[u8; ACCESS]) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_thread_makes_all_its_accesses() {
        let counter = Counter::default();
        one_thread(&counter, 0, 10);
        two_threads(&counter, [0, 1], 100).unwrap();
        assert_eq!(counter.0.into_inner(), 210);
    }

    #[test]
    fn every_way_finds_the_device_and_nothing_beside_it() {
        let plain = Plain::new(3);
        for (place, index) in [(0, Some(0)), (LENGTH - 4, Some(0)), (LENGTH - 3, None), (STRIDE, Some(1))] {
            Pointer(&plain).write(START + place, &7u32.to_le_bytes());
            let reached = plain.0.iter().position(|(_, _, device)| {
                let mut data = [1];
                device.read(0, &mut data);
                Arc::strong_count(device) == 1 && data == [0]
            });
            assert_eq!(reached, Some(0));
            let tree = tree(3, || ());
            assert_eq!(find(&tree, START + place).map(|found| found.0), index.map(address));
        }
        assert_eq!(find(&tree(3, || ()), START - 1), None);
        assert_eq!(bus(3).unwrap().unclaimed(), 0);
    }
}
