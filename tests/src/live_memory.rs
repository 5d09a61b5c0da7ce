//! `LiveMemory`: guest RAM that changes all the time, a device that copies through it, and what both must find. The guest's
//! side is in `tests/guests/slots.S`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};
use vmm_core::Deferred;
use vmm_memory::{
    AddressSpace, Backing, BackingKind, Change, HostMemory, MemoryObserver, ObserverError, PinHolder,
    RamRange, RamRegion,
};
use vmm_vcpu::ExitHandler;

/// The range that changes. As the guest has it.
pub(crate) const WINDOW: u64 = 0x4000_0000;
const STRIDE: u64 = 0x10_0000;
const HOLE: u64 = place(5);
const WINDOW_END: u64 = place(6);

/// Bytes of each region. No other mapping of this process has as many.
pub const SIZE: u64 = 67 * PAGE;
const PAGE: u64 = 4096;

/// RAM that stays, though its memory is replaced.
pub const STAYS: RamRange = region(0);
/// RAM that is read-only now and then.
const GUARDED: RamRange = region(1);
/// RAM that comes and goes.
const COMES: RamRange = region(2);
/// RAM that moves between the two.
const HERE: RamRange = region(3);
const THERE: RamRange = region(4);

/// The device's cell in each region: the guest's vCPUs have pages before it.
const CELL: u64 = 60 * PAGE;
/// What it copies.
const SOURCE: u64 = 61 * PAGE;
const TARGET: u64 = 64 * PAGE;
const COPIED: usize = 2 * PAGE as usize;

const fn place(number: u64) -> u64 {
    WINDOW + number * STRIDE
}

const fn region(number: u64) -> RamRange {
    RamRange { start: place(number), size: SIZE }
}

/// Memory for a region.
fn memory() -> Result<HostMemory> {
    Ok(HostMemory::anonymous(SIZE)?)
}

/// The same with a descriptor.
fn shared_memory() -> Result<HostMemory> {
    Ok(HostMemory::reserve(&Backing::new(BackingKind::Memfd), SIZE)?)
}

/// Maps what is there at the beginning of each round of changes.
///
/// # Errors
///
/// The address space refuses.
pub fn map_all(space: &AddressSpace) -> Result<()> {
    let all = [STAYS, GUARDED, HERE];
    Ok(space.place(all.iter().map(|range| Ok((range.start, memory()?))).collect::<Result<_>>()?)?)
}

/// Pairs of transactions of several changes in a round.
const TOGETHER: usize = 4;

/// One round of changes, after which all is where it was. Each list is a transaction.
///
/// # Errors
///
/// The host has no memory.
pub fn round() -> Result<Vec<Vec<Change>>> {
    let comes = || {
        Ok::<_, anyhow::Error>(Change::Map {
            start: COMES.start,
            memory: shared_memory()?.into(),
            read_only: false,
        })
    };
    let goes = || Change::Unmap(COMES);
    let moves = |range, to: RamRange| Change::Move { range, to: to.start };
    let elsewhere = |range| Ok::<_, anyhow::Error>(Change::Replace { range, memory: memory()? });
    let guarded = |read_only| Change::Protect { range: GUARDED, read_only };
    let mut round = vec![
        vec![comes()?],
        vec![moves(HERE, THERE)],
        vec![elsewhere(STAYS)?],
        vec![guarded(true)],
        vec![goes()],
        vec![moves(THERE, HERE)],
        vec![guarded(false)],
    ];
    // Several in one standstill: most of the changes in a fraction of the time.
    for _ in 0..TOGETHER {
        round.extend([
            vec![comes()?, moves(HERE, THERE), elsewhere(THERE)?, elsewhere(STAYS)?, guarded(true)],
            vec![goes(), moves(THERE, HERE), elsewhere(HERE)?, elsewhere(STAYS)?, guarded(false)],
        ]);
    }
    Ok(round)
}

/// Answers a guest outside of its RAM, and hears how far its vCPUs are.
#[derive(Default)]
pub struct Outside {
    rounds: [AtomicU64; 2],
    accesses: AtomicU64,
    /// The first check that failed, by number, and whatever else should not be.
    wrong: AtomicU64,
}

impl Outside {
    /// How many times both vCPUs have reported a round.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    /// Accesses of the guest to addresses without RAM.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::Relaxed)
    }

    /// Whether every check of the guest was right.
    ///
    /// # Errors
    ///
    /// One was not.
    pub fn ensure_right(&self) -> Result<()> {
        match self.wrong.load(Ordering::Relaxed) {
            0 => Ok(()),
            UNKNOWN => bail!("the guest accesses what it never should"),
            check => bail!("check {check} of the guest failed"),
        }
    }

    fn fail(&self, check: u64) {
        // The first one counts.
        let _ = self.wrong.compare_exchange(0, check, Ordering::Relaxed, Ordering::Relaxed);
    }
}

const ROUND_PORT: u16 = 0x590;
const WRONG_PORT: u16 = 0x594;
const UNKNOWN: u64 = u64::MAX;

impl ExitHandler for Outside {
    fn port_read(&self, _port: u16, _size: usize, _data: &mut [u8]) {
        self.fail(UNKNOWN);
    }

    fn port_write(&self, port: u16, _size: usize, data: &[u8]) -> Option<Deferred> {
        let value = data.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        match port {
            // A page for each vCPU.
            ROUND_PORT => match self.rounds.get(usize::try_from(value / PAGE).unwrap_or(usize::MAX)) {
                Some(rounds) => drop(rounds.fetch_add(1, Ordering::Relaxed)),
                None => self.fail(UNKNOWN),
            },
            WRONG_PORT => self.fail(value),
            _ => self.fail(UNKNOWN),
        }
        None
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        if !(WINDOW..WINDOW_END).contains(&address) {
            self.fail(UNKNOWN);
        }
        data.fill(0xff);
    }

    fn mmio_write(&self, address: u64, _data: &[u8]) -> Option<Deferred> {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        if !(WINDOW..WINDOW_END).contains(&address) {
            self.fail(UNKNOWN);
        }
        None
    }
}

/// An observer with a map of its own, which must always be one that it could have.
#[derive(Debug, Default)]
pub struct Mirror {
    mapped: Mutex<Vec<RamRange>>,
    followed: AtomicU64,
}

impl Mirror {
    /// What it maps, by address.
    #[must_use]
    pub fn ranges(&self) -> Vec<RamRange> {
        let mut ranges = self.mapped().clone();
        ranges.sort_unstable();
        ranges
    }

    /// How often it was told of a region.
    #[must_use]
    pub fn followed(&self) -> u64 {
        self.followed.load(Ordering::Relaxed)
    }

    fn mapped(&self) -> MutexGuard<'_, Vec<RamRange>> {
        self.followed.fetch_add(1, Ordering::Relaxed);
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryObserver for Mirror {
    fn name(&self) -> &'static str {
        "mirror"
    }

    fn map(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let mut mapped = self.mapped();
        let range = region.range();
        let is_free = |other: &RamRange| {
            other.start + other.size <= range.start || range.start + range.size <= other.start
        };
        if !mapped.iter().all(is_free) {
            return Err(format!("{range} is mapped already").into());
        }
        mapped.push(range);
        Ok(())
    }

    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let mut mapped = self.mapped();
        let at = mapped.iter().position(|range| *range == region.range());
        mapped.swap_remove(at.ok_or_else(|| format!("{} is not mapped", region.range()))?);
        Ok(())
    }
}

/// What a device has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copied {
    /// Accesses that found RAM.
    pub done: u64,
    /// Accesses that were refused, as there was none.
    pub refused: u64,
    /// Requests that outlived their read section.
    pub pinned: u64,
}

/// Between two rounds of a device.
const REST: Duration = Duration::from_micros(100);

/// A device that accesses the RAM by tables and, now and then, by pins.
pub struct Copier {
    space: Arc<AddressSpace>,
    holder: Arc<PinHolder>,
    copied: Copied,
    /// What it has stored last.
    number: u64,
    /// The last numbers that were stored in RAM that stays and in RAM that moves.
    stayed: u64,
    moved: u64,
}

impl Copier {
    /// One that has done nothing.
    #[must_use]
    pub fn new(space: Arc<AddressSpace>) -> Self {
        let holder = PinHolder::new("copier", |_| ());
        Self { space, holder, copied: Copied::default(), number: 0, stayed: 0, moved: 0 }
    }

    /// Works until `is_over`.
    ///
    /// # Errors
    ///
    /// It has found what must not be.
    pub fn work(mut self, is_over: impl Fn() -> bool) -> Result<Copied> {
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(COPIED).collect();
        while self.fill(&content).is_none() && !is_over() {}
        while !is_over() {
            self.number += 1;
            self.check_cells().with_context(|| format!("{:?}", self.copied))?;
            self.copy(&content)?;
            self.access_by_pin()?;
            // As a device that waits for its next request. One that never sleeps would have the vCPUs, and whoever waits for
            // them, wait for a CPU.
            std::thread::sleep(REST);
        }
        Ok(self.copied)
    }

    /// What an access gives; `None` if there is no RAM.
    fn count<T>(&mut self, result: Result<T, GuestMemoryError>) -> Result<Option<T>> {
        match result {
            Ok(value) => {
                self.copied.done += 1;
                Ok(Some(value))
            }
            Err(GuestMemoryError::InvalidGuestAddress(_)) => {
                self.copied.refused += 1;
                Ok(None)
            }
            Err(error) => bail!(error),
        }
    }

    fn load(&mut self, address: u64) -> Result<Option<u64>> {
        let result = self.space.memory().read_obj(GuestAddress(address));
        self.count(result)
    }

    fn store(&mut self, address: u64) -> Result<bool> {
        let result = self.space.memory().write_obj(self.number, GuestAddress(address));
        Ok(self.count(result)?.is_some())
    }

    /// Stores and loads in read sections of their own.
    fn check_cells(&mut self) -> Result<()> {
        if self.store(STAYS.start + CELL)? {
            self.stayed = self.number;
        }
        if let Some(found) = self.load(STAYS.start + CELL)? {
            ensure!(found == self.stayed, "{found} in RAM that stays, not {}", self.stayed);
        }
        for range in [HERE, THERE] {
            if self.store(range.start + CELL)? {
                self.moved = self.number;
            }
        }
        for range in [HERE, THERE] {
            if let Some(found) = self.load(range.start + CELL)? {
                ensure!(found == self.moved, "{found} in RAM that moves, not {}", self.moved);
            }
        }
        self.store(COMES.start + CELL)?;
        if let Some(found) = self.load(COMES.start + CELL)? {
            ensure!(found == 0 || found == self.number, "{found} in RAM that has just come");
        }
        ensure!(self.load(HOLE)?.is_none(), "RAM in the hole");
        Ok(())
    }

    fn fill(&mut self, content: &[u8]) -> Option<()> {
        self.space.memory().write_slice(content, GuestAddress(STAYS.start + SOURCE)).ok()
    }

    /// Copies from RAM that stays, through RAM that comes and goes, to RAM that stays, in one batch.
    fn copy(&mut self, content: &[u8]) -> Result<()> {
        let table = self.space.memory();
        let slice = |address| table.get_slice(GuestAddress(address), COPIED);
        let slices = (|| {
            let (from, over) = (slice(STAYS.start + SOURCE)?, slice(COMES.start + SOURCE)?);
            Ok((from, over, slice(STAYS.start + TARGET)?))
        })();
        let copied = slices.map(|(from, over, to)| {
            from.copy_to_volatile_slice(over);
            over.copy_to_volatile_slice(to);
            let mut found = vec![0; COPIED];
            to.copy_to(&mut found[..]);
            found == content
        });
        drop(table);
        if let Some(is_right) = self.count(copied)? {
            ensure!(is_right, "what was copied is not what arrived");
        }
        Ok(())
    }

    /// A request that is in flight when its read section ends.
    fn access_by_pin(&mut self) -> Result<()> {
        let range = if self.number.is_multiple_of(2) { STAYS } else { COMES };
        let pin = match self.space.memory().find_region(GuestAddress(range.start)) {
            Some(region) => region.pin(&self.holder)?,
            None => return Ok(()),
        };
        let cell = vm_memory::MemoryRegionAddress(CELL);
        for number in [self.number << 32, self.number] {
            pin.write_obj(number, cell)?;
            std::thread::yield_now();
            let found: u64 = pin.read_obj(cell)?;
            ensure!(found == number, "{found} in pinned RAM, not {number}");
        }
        if range == STAYS {
            self.stayed = self.number;
        }
        self.copied.pinned += 1;
        Ok(())
    }
}
