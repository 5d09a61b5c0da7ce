//! Reads of the table of guest RAM while somebody changes it: of this project's, and of the same table behind locks.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_memory::{AddressSpace, Backing, GuestMemory, RamRange};

use crate::bench::slot_probe::Coming;
use crate::cpus;

/// Regions of the table. With one more of them the search for one is as many steps: with 8 it would be a step more while the
/// ninth is there, a sixth of a look, and that would be taken for the price of a change.
const REGIONS: u64 = 9;
/// From one to the next.
const STRIDE: u64 = 0x1_0000;

/// What is read: the first word of a region in the middle.
const READ: GuestAddress = GuestAddress(0x1_0000_0000 + REGIONS / 2 * STRIDE);

/// Reads between two looks at the clock.
const BATCH: u64 = 64;

/// A table that is read and changed.
pub trait Table: Sync {
    /// Loads a word, in a read section of its own.
    fn read(&self) -> u64;

    /// Finds the region of an address, in a read section of its own: what is done with the table before each access.
    fn look_up(&self) -> u64;

    /// Makes one change of something that is not read: it comes or goes.
    ///
    /// # Errors
    ///
    /// It fails.
    fn change(&self, comes: bool) -> Result<()>;
}

/// Maps what is read.
///
/// # Errors
///
/// The address space refuses.
pub fn map_all(space: &AddressSpace) -> Result<()> {
    let range = |number| RamRange { start: 0x1_0000_0000 + number * STRIDE, size: STRIDE / 2 };
    Ok(space.map(&(0..REGIONS).map(range).collect::<Vec<_>>(), &Backing::default())?)
}

/// As queues load their indices.
fn load(table: &GuestMemory) -> u64 {
    table.load(black_box(READ), Ordering::Relaxed).unwrap_or(u64::MAX)
}

fn find(table: &GuestMemory) -> u64 {
    table.find_region(black_box(READ)).map_or(u64::MAX, |region| region.range().size)
}

impl Table for AddressSpace {
    #[inline]
    fn read(&self) -> u64 {
        load(&self.memory())
    }

    #[inline]
    fn look_up(&self) -> u64 {
        find(&self.memory())
    }

    fn change(&self, comes: bool) -> Result<()> {
        let change = if comes { Coming::map()? } else { Coming::unmap() };
        Ok(self.apply([change])?)
    }
}

/// The tables without and with what comes and goes. Those that change a lock's table only hand out these: neither memory nor
/// KVM is part of a change there.
pub struct Copies([GuestMemory; 2]);

impl Copies {
    /// Those of `space`, from which what comes and goes is missing.
    ///
    /// # Errors
    ///
    /// A change fails.
    pub fn of(space: &AddressSpace) -> Result<Self> {
        let without = GuestMemory::clone(&space.memory());
        space.change(true)?;
        let with = GuestMemory::clone(&space.memory());
        space.change(false)?;
        Ok(Self([without, with]))
    }

    fn get(&self, comes: bool) -> GuestMemory {
        self.0[usize::from(comes)].clone()
    }
}

/// The table behind a pointer that never changes: the floor.
pub struct Fixed(pub Arc<Copies>);

impl Table for Fixed {
    #[inline]
    fn read(&self) -> u64 {
        load(&black_box(&self.0).0[0])
    }

    #[inline]
    fn look_up(&self) -> u64 {
        find(&black_box(&self.0).0[0])
    }

    /// What those who change a lock's table do, without the lock: what a reader pays for a thread beside it.
    fn change(&self, comes: bool) -> Result<()> {
        drop(black_box(self.0.get(comes)));
        Ok(())
    }
}

/// The table in a reader-writer lock.
pub struct InRwLock {
    table: RwLock<GuestMemory>,
    copies: Arc<Copies>,
}

/// The table in a mutex.
pub struct InMutex {
    table: Mutex<GuestMemory>,
    copies: Arc<Copies>,
}

impl InRwLock {
    /// With the first of `copies`.
    #[must_use]
    pub fn new(copies: &Arc<Copies>) -> Self {
        Self { table: RwLock::new(copies.get(false)), copies: Arc::clone(copies) }
    }
}

impl InMutex {
    /// With the first of `copies`.
    #[must_use]
    pub fn new(copies: &Arc<Copies>) -> Self {
        Self { table: Mutex::new(copies.get(false)), copies: Arc::clone(copies) }
    }
}

impl Table for InRwLock {
    #[inline]
    fn read(&self) -> u64 {
        load(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    fn look_up(&self) -> u64 {
        find(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, comes: bool) -> Result<()> {
        let new = self.copies.get(comes);
        let old = std::mem::replace(&mut *self.table.write().unwrap_or_else(PoisonError::into_inner), new);
        drop(old);
        Ok(())
    }
}

impl Table for InMutex {
    #[inline]
    fn read(&self) -> u64 {
        load(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    fn look_up(&self) -> u64 {
        find(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, comes: bool) -> Result<()> {
        let new = self.copies.get(comes);
        let old = std::mem::replace(&mut *self.table.lock().unwrap_or_else(PoisonError::into_inner), new);
        drop(old);
        Ok(())
    }
}

/// How often a table changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Not at all.
    Still,
    /// A thousand times a second.
    Thousand,
    /// As fast as it can.
    Full,
}

/// A thread that changes a table, in pairs: what comes goes. Ends when it is told to, and has left nothing behind.
///
/// # Errors
///
/// A change fails.
pub fn change_until(table: &dyn Table, pace: Pace, changes: &AtomicU64, is_over: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    let mut comes = true;
    while pace != Pace::Still && (!comes || !is_over.load(Ordering::Relaxed)) {
        table.change(comes)?;
        comes = !comes;
        let made = changes.fetch_add(1, Ordering::Relaxed) + 1;
        if pace == Pace::Thousand {
            let next = start + Duration::from_millis(1) * u32::try_from(made)?;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

/// What a reader does in each of its read sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// [`Table::read`].
    Load,
    /// [`Table::look_up`].
    LookUp,
}

/// What reading has come to.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// CPU time of a read, the mean of all readers.
    pub read: f64,
    /// Changes that were made meanwhile.
    pub changes: u64,
}

/// Has `readers` threads, each on a CPU of its own, read for a while as fast as they can.
///
/// # Errors
///
/// There are not as many CPUs; a change fails.
pub fn read(
    table: &dyn Table,
    (readers, access): (usize, Access),
    pace: Pace,
    time: Duration,
) -> Result<Reading> {
    let cpus = cpus::allowed()?;
    let (changes, is_over, ready) = (AtomicU64::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let (changes, is_over, ready) = (&changes, &is_over, &ready);
    thread::scope(|scope| {
        let writer_cpu = cpus.get(readers).copied();
        let writer = scope.spawn(move || {
            writer_cpu.map_or(Ok(()), cpus::stay_on)?;
            change_until(table, pace, changes, is_over)
        });
        let threads: Vec<_> = (0..readers)
            .map(|reader| {
                let cpu = cpus.get(reader).copied();
                scope.spawn(move || {
                    cpus::stay_on(cpu.context("a CPU for each reader")?)?;
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < readers {
                        thread::yield_now();
                    }
                    read_for(table, access, time)
                })
            })
            .collect();
        let panicked = |_| anyhow!("a thread of the benchmark panicked");
        let sums: Vec<_> = threads.into_iter().map(|thread| thread.join().map_err(panicked)).collect();
        is_over.store(true, Ordering::Relaxed);
        writer.join().map_err(panicked)??;
        let (mut reads, mut spent) = (0, Duration::ZERO);
        for sum in sums {
            let (own_reads, own_time) = sum??;
            reads += own_reads;
            spent += own_time;
        }
        Ok(Reading {
            read: spent.as_secs_f64() * 1e9 / reads as f64,
            changes: changes.load(Ordering::Relaxed),
        })
    })
}

/// Reads, and CPU time of this thread.
fn read_for(table: &dyn Table, access: Access, time: Duration) -> Result<(u64, Duration)> {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let (start, cpu_start) = (Instant::now(), now()?);
    let mut reads = 0;
    // Once at least: on a busy host the time may be over before this thread has begun.
    while reads == 0 || start.elapsed() < time {
        match access {
            Access::Load => (0..BATCH).for_each(|_| {
                black_box(table.read());
            }),
            Access::LookUp => (0..BATCH).for_each(|_| {
                black_box(table.look_up());
            }),
        }
        reads += BATCH;
    }
    Ok((reads, now()?.saturating_sub(cpu_start)))
}

#[cfg(test)]
mod tests {
    use vmm_core::fake::FakeVm;

    use super::*;

    #[test]
    fn every_table_is_read_and_changed_and_left_as_it_was() {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        map_all(&space).unwrap();
        space.memory().write_obj(7_u64, READ).unwrap();
        let copies = Arc::new(Copies::of(&space).unwrap());
        let (locked, exclusive) = (InRwLock::new(&copies), InMutex::new(&copies));
        let tables: [&dyn Table; 3] = [&space, &locked, &exclusive];
        for table in tables {
            let reading = read(table, (1, Access::Load), Pace::Full, Duration::from_millis(5)).unwrap();
            assert!(reading.read > 0.0 && reading.changes.is_multiple_of(2), "{reading:?}");
            assert_eq!(table.read(), 7);
        }
        assert_eq!(Fixed(copies).read(), 7);
        assert_eq!(space.ranges().len() as u64, REGIONS);
    }
}
