//! `SlotProbe`: stands between an address space and KVM, and notes when the steps of a transaction begin and end.
#![expect(unsafe_code, reason = "implements the seam through which the guest is shown memory")]

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmm_core::seam::{MemorySlot, MemorySlots};
use vmm_core::{IoctlError, Vm};
use vmm_memory::{
    AddressSpace, Change, HostMemory, MemoryObserver, ObserverError, Quiesce, RamRange, RamRegion,
};

/// Slots below are those of the machine itself.
const FIRST_SLOT: u32 = 16;
/// Of the raw baseline; KVM looks for slots by number.
const RAW_SLOT: u32 = 15;

/// A step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Quiesce,
    Quiesced,
    Release,
    Ioctl,
    IoctlDone,
    /// Observers unmap when readers and pins have been waited for.
    Waited,
}

/// See the module documentation.
pub struct SlotProbe {
    vm: Arc<Vm>,
    machine: Option<Arc<dyn Quiesce>>,
    steps: Mutex<Option<Vec<(Step, Instant)>>>,
}

/// What a transaction took, and parts of it; those that it did not have are zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    /// All of it.
    pub whole: Duration,
    /// From its begin, or the standstill's, to the first ioctl.
    pub before: Duration,
    /// All ioctls.
    pub ioctls: Duration,
    /// From the end of the ioctl that deletes the slot until readers and pins have been waited for.
    pub grace: Duration,
    /// From there, or the last ioctl, to the end.
    pub after: Duration,
    /// Until every vCPU was parked.
    pub stop: Duration,
    /// From the request to park until they were let go.
    pub stood: Duration,
}

impl SlotProbe {
    /// An address space in `vm` beside that of the machine, and its probe. `machine` brings it to a standstill.
    ///
    /// # Errors
    ///
    /// None: nothing is mapped there.
    pub fn beside(vm: &Arc<Vm>, machine: Option<Arc<dyn Quiesce>>) -> Result<(Arc<Self>, Arc<AddressSpace>)> {
        let probe = Arc::new(Self { vm: Arc::clone(vm), machine, steps: Mutex::default() });
        let space = Arc::new(AddressSpace::new(Arc::clone(&probe) as Arc<dyn MemorySlots>));
        space.set_machine(Arc::clone(&probe) as Arc<dyn Quiesce>);
        space.add_observer(Arc::clone(&probe) as Arc<dyn MemoryObserver>)?;
        Ok((probe, space))
    }

    /// Makes one transaction of `change` and times it.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn time(&self, space: &AddressSpace, change: Change) -> Result<Timed> {
        *self.steps() = Some(Vec::with_capacity(16));
        let start = Instant::now();
        let changed = space.apply([change]);
        let end = Instant::now();
        let steps = self.steps().take().context("nobody has noted anything")?;
        changed?;
        Ok(Timed::of(start, &steps, end))
    }

    /// The barest ioctls that create and delete a slot for `memory` at `start`, and what each takes.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn raw(&self, start: u64, memory: &HostMemory) -> Result<[Duration; 2]> {
        let host_address = memory.as_ptr() as u64;
        let slot = |size| MemorySlot {
            id: RAW_SLOT,
            guest_address: start,
            size,
            host_address,
            read_only: false,
            log_dirty: false,
        };
        let begin = Instant::now();
        // SAFETY:
        // - the memory was made for guests, and is borrowed until the slot is deleted below; an error of that ends the
        //   program.
        unsafe { self.vm.set_memory_slot(&slot(memory.len())) }?;
        let created = begin.elapsed();
        let begin = Instant::now();
        // SAFETY:
        // - a slot of size 0 refers to no memory.
        unsafe { self.vm.set_memory_slot(&slot(0)) }?;
        Ok([created, begin.elapsed()])
    }

    fn steps(&self) -> MutexGuard<'_, Option<Vec<(Step, Instant)>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, step: Step) {
        if let Some(steps) = self.steps().as_mut() {
            steps.push((step, Instant::now()));
        }
    }
}

impl Timed {
    fn of(start: Instant, steps: &[(Step, Instant)], end: Instant) -> Self {
        let first = |step| steps.iter().find(|(noted, _)| *noted == step).map(|(_, at)| *at);
        let last = |step| steps.iter().rfind(|(noted, _)| *noted == step).map(|(_, at)| *at);
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        let times = |step| steps.iter().filter(move |(noted, _)| *noted == step).map(|(_, at)| *at);
        let ioctls = times(Step::Ioctl)
            .zip(times(Step::IoctlDone))
            .map(|(from, to)| to.saturating_duration_since(from));
        let waited = last(Step::Waited);
        Self {
            whole: end.saturating_duration_since(start),
            before: between(first(Step::Quiesced).or(Some(start)), first(Step::Ioctl)),
            ioctls: ioctls.sum(),
            grace: between(waited.and(first(Step::IoctlDone)), waited),
            after: between(waited.max(last(Step::IoctlDone)), Some(end)),
            stop: between(first(Step::Quiesce), first(Step::Quiesced)),
            stood: between(first(Step::Quiesce), last(Step::Release)),
        }
    }
}

impl MemorySlots for SlotProbe {
    fn slot_limit(&self) -> u32 {
        self.vm.slot_limit() - FIRST_SLOT
    }

    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError> {
        self.note(Step::Ioctl);
        // SAFETY:
        // - the caller answers for the memory.
        let result = unsafe { self.vm.set_memory_slot(&MemorySlot { id: slot.id + FIRST_SLOT, ..*slot }) };
        self.note(Step::IoctlDone);
        result
    }
}

impl MemoryObserver for SlotProbe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn map(&self, _region: &RamRegion) -> Result<(), ObserverError> {
        Ok(())
    }

    fn unmap(&self, _region: &RamRegion) -> Result<(), ObserverError> {
        self.note(Step::Waited);
        Ok(())
    }
}

impl Quiesce for SlotProbe {
    fn quiesce(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.note(Step::Quiesce);
        self.machine.as_ref().map_or(Ok(()), |machine| machine.quiesce())?;
        self.note(Step::Quiesced);
        Ok(())
    }

    fn release(&self) {
        // Whoever is let go may take the CPU of this thread at once.
        self.note(Step::Release);
        if let Some(machine) = &self.machine {
            machine.release();
        }
    }
}

/// Something that comes and goes in an address space: 2 MiB that nobody has touched.
#[derive(Clone, Copy, Debug)]
pub struct Coming;

impl Coming {
    /// Where it is; no machine of the benchmarks has anything there.
    pub const RANGE: RamRange = RamRange { start: 0x4000_0000, size: 2 << 20 };

    /// Memory for it.
    ///
    /// # Errors
    ///
    /// The host has none.
    pub fn memory() -> Result<HostMemory> {
        Ok(HostMemory::anonymous(Self::RANGE.size)?)
    }

    /// Has it come.
    ///
    /// # Errors
    ///
    /// The host has no memory.
    pub fn map() -> Result<Change> {
        Ok(Change::Map { start: Self::RANGE.start, memory: Self::memory()?.into(), read_only: false })
    }

    /// Has it go.
    #[must_use]
    pub fn unmap() -> Change {
        Change::Unmap(Self::RANGE)
    }

    /// Has it be somewhere else on the host.
    ///
    /// # Errors
    ///
    /// The host has no memory.
    pub fn replace() -> Result<Change> {
        Ok(Change::Replace { range: Self::RANGE, memory: Self::memory()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_transaction_are_between_its_steps() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let steps = [
            (Step::Quiesce, at(1)),
            (Step::Quiesced, at(3)),
            (Step::Ioctl, at(6)),
            (Step::IoctlDone, at(10)),
            (Step::Waited, at(15)),
            (Step::Ioctl, at(21)),
            (Step::IoctlDone, at(28)),
            (Step::Release, at(36)),
        ];
        let Timed { whole, before, ioctls, grace, after, stop, stood } = Timed::of(start, &steps, at(45));
        assert_eq!([whole, before, ioctls, grace], [ms(45), ms(3), ms(11), ms(5)]);
        assert_eq!([after, stop, stood], [ms(17), ms(2), ms(35)]);
        let map = Timed::of(start, &[(Step::Ioctl, at(2)), (Step::IoctlDone, at(5))], at(6));
        assert_eq!([map.before, map.ioctls, map.grace, map.after], [ms(2), ms(3), ms(0), ms(1)]);
    }
}
