//! `AddressSpace`: the one writer of the guest's memory map.
//!
//! A transaction takes out what it takes out and then puts in what it puts in, in the order of `sequence.rs`: publish without →
//! KVM slots deleted → readers and pins gone → observers unmap; observers map → KVM slots → publish with. Then the
//! memory that left goes back to the host. A step that fails undoes those before it.
//!
//! What only moves or changes its protection goes the same way, with the same memory. KVM would move a live slot in one call,
//! but then either an observer has lost the old place while the guest has it, or has yet to map the new one.
//!
//! Lock order: `registry`, in it the writer mutex of `memory`. Both are held for bookkeeping only: nobody waits under
//! them, and no KVM ioctl, observer or canceller is called. A transaction holds no lock at all; it marks its regions as its
//! own, and another one that wants them, or their places, is refused as busy. So whatever a transaction waits for may
//! itself begin one.

mod commit;
mod draft;
mod observers;
mod plan;
mod registry;
mod request;
pub(crate) mod sequence;
#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests;

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use commit::Commit;
use registry::Registry;
use vmm_core::seam::MemorySlots;
use vmm_core::{InReadSection, Published, ReadGuard, Retired, in_read_section};

use crate::GuestMemory;
use crate::backing::{Backing, HostMemory};
use crate::change::{Change, ChangeError};
use crate::quiesce::Quiesce;
use crate::range::RamRange;
use crate::slot::Slot;
use crate::sync::{Mutex, lock};
pub(crate) use request::Replug;
use request::Request;

/// The highest address that any x86-64 processor can have.
const LAST_ADDRESS: u64 = (1 << 52) - 1;

/// How long requests in flight may keep guest RAM that is to go.
const PIN_LIMIT: Duration = Duration::from_secs(5);

/// More than that is for ever, and less than the clock can count.
const LONGEST: Duration = Duration::from_secs(1 << 32);

/// The memory map of one VM. Every method may be called from any thread.
pub struct AddressSpace {
    vm: Arc<dyn MemorySlots>,
    registry: Mutex<Registry>,
    memory: Published<GuestMemory>,
    machine: OnceLock<Arc<dyn Quiesce>>,
    pin_limit: Duration,
    last_address: u64,
}

impl AddressSpace {
    /// An address space of `vm` without RAM.
    #[must_use]
    pub fn new(vm: Arc<dyn MemorySlots>) -> Self {
        let registry = Mutex::new(Registry::new(vm.slot_limit()));
        let memory = Published::new(GuestMemory::new());
        let machine = OnceLock::new();
        Self { vm, registry, memory, machine, pin_limit: PIN_LIMIT, last_address: LAST_ADDRESS }
    }

    /// Refuses RAM at addresses of more than `bits` bits, as many as the guest's processors say that they have; 52 unless it
    /// is said.
    #[must_use]
    pub fn with_address_bits(mut self, bits: u32) -> Self {
        let addresses = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
        self.last_address = addresses.saturating_sub(1).min(LAST_ADDRESS);
        self
    }

    /// Waits for pins no longer than `limit`; five seconds unless it is said.
    #[must_use]
    pub fn with_pin_limit(mut self, limit: Duration) -> Self {
        self.pin_limit = limit.min(LONGEST);
        self
    }

    /// Says who brings the machine to a standstill, as soon as there are vCPUs. Without one, changes that need it are made
    /// at once. Can be said once.
    pub fn set_machine(&self, machine: Arc<dyn Quiesce>) {
        let is_first = self.machine.set(machine).is_ok();
        debug_assert!(is_first, "an address space has one machine");
    }

    /// The table as it is now. For one exit or one batch.
    #[must_use]
    #[inline]
    pub fn memory(&self) -> ReadGuard<'_, GuestMemory> {
        self.memory.load()
    }

    /// What is mapped, by address.
    #[must_use]
    pub fn ranges(&self) -> Vec<RamRange> {
        lock(&self.registry).ranges()
    }

    /// Backs `ranges` as `backing` says, reading as zero or as its file does. Of a file, the second range takes what follows
    /// the part of the first.
    ///
    /// # Errors
    /// Any [`ChangeError`]; nothing is mapped then.
    pub fn map(&self, ranges: &[RamRange], backing: &Backing) -> Result<(), ChangeError> {
        let mut before = 0_u64;
        let mut parts = Vec::with_capacity(ranges.len());
        for &range in ranges {
            if !range.is_whole_pages() {
                return Err(ChangeError::BadRange(range));
            }
            let memory = HostMemory::reserve(&backing.further(before), range.size);
            let memory = memory.map_err(|source| ChangeError::Reserve { range, source })?;
            parts.push((range.start, memory));
            before = before.saturating_add(range.size);
        }
        self.place(parts)
    }

    /// Puts memory that was reserved elsewhere at these guest-physical addresses. Who keeps a share of it has it for himself again
    /// when his is the only one.
    ///
    /// # Errors
    /// Any [`ChangeError`]; nothing is mapped then, and memory that nobody else has is gone.
    pub fn place<M: Into<Arc<HostMemory>>>(&self, parts: Vec<(u64, M)>) -> Result<(), ChangeError> {
        let map = |(start, memory): (u64, M)| Change::Map { start, memory: memory.into(), read_only: false };
        self.apply(parts.into_iter().map(map))
    }

    /// Makes one transaction of `changes`: all of them, each on top of the ones before it, or none.
    ///
    /// Blocks while readers of the old table, pins of what goes and observers are waited for; for replacements and changes of
    /// protection, until the machine has come to a standstill. While such a transaction runs, the regions that it is
    /// about are missing from the table.
    ///
    /// # Errors
    /// Any [`ChangeError`]. [`InReadSection`] before anything is done if the caller has a table in hand.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), ChangeError> {
        self.transact(Request::Changes(changes.into_iter().collect()), self.pin_limit)
    }

    /// Makes one transaction of what plugging and unplugging needs. Whatever goes and is pinned makes it fail at once. What stays beside it
    /// is in the table all the time, although its slots go and come.
    pub(crate) fn replug(&self, replug: Replug) -> Result<(), ChangeError> {
        self.transact(Request::Replug(replug), Duration::ZERO)
    }

    /// Keeps `range`, where nothing is, for what is plugged there: nobody else maps anything in it until
    /// [`end_reservation`](Self::end_reservation).
    pub(crate) fn reserve(&self, range: RamRange) -> Result<(), ChangeError> {
        lock(&self.registry).reserve(range, self.last_address)
    }

    pub(crate) fn end_reservation(&self, range: RamRange) {
        lock(&self.registry).end_reservation(range);
    }

    fn transact(&self, request: Request, pin_limit: Duration) -> Result<(), ChangeError> {
        if in_read_section() {
            return Err(InReadSection.into());
        }
        let new_slot = |id, region| Slot::new(Arc::clone(&self.vm), id, region);
        let plan = lock(&self.registry).begin(request, self.last_address, new_slot)?;
        Commit::new(self, plan, pin_limit).run()
    }

    /// Changes the registry, publishes the table that comes out, and returns the one before it, for a wait: whatever is in it
    /// and in older ones dies with it.
    fn publish_and_retire(&self, change: impl FnOnce(&mut Registry)) -> Retired<GuestMemory> {
        let mut registry = lock(&self.registry);
        change(&mut registry);
        let retired = self.publish(&registry);
        retired.with_older(registry.take_stale())
    }

    /// Changes the registry, and publishes the table that comes out if `publish`. Nobody waits for the one before it.
    fn publish_if(&self, publish: bool, change: impl FnOnce(&mut Registry)) {
        let mut registry = lock(&self.registry);
        change(&mut registry);
        if publish {
            let retired = self.publish(&registry);
            let surplus = registry.keep_stale(retired);
            drop(registry);
            drop(surplus);
        }
    }

    fn publish(&self, registry: &Registry) -> Retired<GuestMemory> {
        let Ok(retired) = self.memory.update(|_| Ok::<_, Infallible>(registry.table()));
        retired
    }
}

impl Drop for AddressSpace {
    /// Takes everything from the guest and from the observers. Nobody reads the table any more, and what is pinned lives as
    /// long as its pins.
    fn drop(&mut self) {
        let mut taken = None;
        let retired = self.publish_and_retire(|registry| taken = Some(registry.take_all()));
        let (mut slots, observers) = taken.unwrap_or_default();
        slots.retain_mut(Slot::end);
        for region in slots.iter().map(Slot::region) {
            for observer in observers.iter().rev() {
                if let Err(error) = observer.unmap(region) {
                    let observer = observer.name();
                    tracing::error!(range = %region.range(), %error, observer, "memory is kept mapped for an observer");
                    region.block().leak();
                }
            }
        }
        // Nobody reads this address space, so nobody is waited for. Inside a read section of another cell the reaper has the
        // tables.
        let _ = retired.wait();
    }
}
