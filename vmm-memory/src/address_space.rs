//! `AddressSpace`: the one writer of the guest's memory map.
//!
//! Map: reserve host memory → KVM slot → publish. A step that fails undoes the ones before it.
//!
//! Lock order: `slots` is held for one transaction, so that transactions take turns; nobody waits for readers or
//! calls out of this crate (but for the slot ioctls) under it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_core::seam::MemorySlots;
use vmm_core::{IoctlError, Published, ReadGuard};

use crate::GuestMemory;
use crate::backing::{Backing, BackingError, HostMemory};
use crate::region::Region;
use crate::slot::Slot;

/// A range of guest-physical addresses to be backed by RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address, a multiple of 4096.
    pub start: u64,
    /// Length in bytes, a multiple of 4096, not 0.
    pub size: u64,
}

/// Why RAM cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Start or size is no multiple of the page size, the size is 0, or the range passes the end of the address space.
    #[error("guest RAM at {start:#x} with {size:#x} bytes is not a range of whole pages")]
    BadRange {
        /// Guest-physical start.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// RAM is there already.
    #[error("guest RAM at {start:#x} with {size:#x} bytes overlaps RAM that is mapped")]
    Overlap {
        /// Guest-physical start.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// The host does not give the memory.
    #[error("the guest gets no RAM at {start:#x} with {size:#x} bytes")]
    Reserve {
        /// Guest-physical start.
        start: u64,
        /// Bytes.
        size: u64,
        /// Why not.
        #[source]
        source: BackingError,
    },
    /// KVM refuses the slot.
    #[error("cannot show guest RAM at {start:#x} with {size:#x} bytes to the guest")]
    Slot {
        /// Guest-physical start.
        start: u64,
        /// Bytes.
        size: u64,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
}

/// The memory map of one VM.
///
/// Dropped, the table goes first, then each slot, then the memory behind it.
pub struct AddressSpace {
    vm: Arc<dyn MemorySlots>,
    memory: Published<GuestMemory>,
    slots: Mutex<Vec<Slot>>,
}

impl AddressSpace {
    /// An address space of `vm` without RAM.
    #[must_use]
    pub fn new(vm: Arc<dyn MemorySlots>) -> Self {
        Self { vm, slots: Mutex::default(), memory: Published::new(GuestMemory::new()) }
    }

    /// The table as it is now. For one exit or one batch.
    #[must_use]
    pub fn memory(&self) -> ReadGuard<'_, GuestMemory> {
        self.memory.load()
    }

    /// Backs `ranges` as `backing` says, reading as zero or as its file does. Of a file, the second range takes what follows
    /// the part of the first.
    ///
    /// # Errors
    /// Any [`MapError`]; nothing is mapped then.
    pub fn map(&self, ranges: &[RamRange], backing: &Backing) -> Result<(), MapError> {
        let mut before = 0_u64;
        let mut parts = Vec::with_capacity(ranges.len());
        for &RamRange { start, size } in ranges {
            Region::check(start, size)?;
            let memory = HostMemory::reserve(&backing.further(before), size);
            parts.push((start, memory.map_err(|source| MapError::Reserve { start, size, source })?));
            before = before.saturating_add(size);
        }
        self.place(parts)
    }

    /// Puts memory that was reserved elsewhere at these guest-physical addresses, multiples of 4096.
    ///
    /// # Errors
    /// Any [`MapError`] but [`MapError::Reserve`]; nothing is mapped then, and the memory is gone.
    pub fn place(&self, parts: Vec<(u64, HostMemory)>) -> Result<(), MapError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut added = Vec::with_capacity(parts.len());
        // Dropped before `added`: no table refers to memory that goes.
        let mut table = self.memory.load().clone();
        for (start, memory) in parts {
            let size = memory.len();
            let region = Region::new(start, memory)?;
            table = table.insert_region(region.region()).map_err(|_| MapError::Overlap { start, size })?;
            let id = free_slot_id(slots.iter().chain(&added));
            match Slot::create(Arc::clone(&self.vm), id, region) {
                Ok(slot) => added.push(slot),
                Err((source, region)) => {
                    // The table goes before the region that is in it.
                    drop(table);
                    drop(region);
                    return Err(MapError::Slot { start, size, source });
                }
            }
        }
        // The table only grew: whoever still reads the old one sees nothing that goes away.
        let Ok(_grown) = self.memory.update(|_| Ok::<_, Infallible>(table));
        slots.append(&mut added);
        Ok(())
    }
}

/// The lowest slot number that none of `taken` has.
fn free_slot_id<'a>(taken: impl Iterator<Item = &'a Slot>) -> u32 {
    let mut ids: Vec<u32> = taken.map(Slot::id).collect();
    ids.sort_unstable();
    let mut free = 0;
    for id in ids {
        if id == free {
            free = id.saturating_add(1);
        }
    }
    free
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
    use vmm_core::fake::{FakeCall, FakeVm};

    use super::*;
    use crate::{BackingKind, PAGE};

    const MIB: u64 = 1 << 20;

    fn map(space: &AddressSpace, list: &[(u64, u64)]) -> Result<(), MapError> {
        let ranges: Vec<_> = list.iter().map(|&(start, size)| RamRange { start, size }).collect();
        space.map(&ranges, &Backing::default())
    }

    /// The slots that exist after `calls`.
    fn live_slots(calls: &[FakeCall]) -> Vec<u32> {
        let mut live = Vec::new();
        for call in calls {
            if let FakeCall::SetSlot(slot) = call {
                live.retain(|&id| id != slot.id);
                if slot.size != 0 {
                    live.push(slot.id);
                }
            }
        }
        live
    }

    #[test]
    fn mapped_ram_reads_as_zero_and_keeps_what_is_written() {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        map(&space, &[(0, MIB), (1 << 32, MIB)]).unwrap();
        let memory = space.memory();
        assert_eq!(memory.load::<u64>(GuestAddress(0x1000), Ordering::Relaxed).unwrap(), 0);
        memory.write_slice(b"above", GuestAddress(1 << 32)).unwrap();
        let mut back = [0; 5];
        memory.read_slice(&mut back, GuestAddress(1 << 32)).unwrap();
        assert_eq!(&back, b"above");
        assert!(memory.write_slice(b"hole", GuestAddress(MIB)).is_err());
    }

    #[test]
    fn every_failing_slot_ioctl_leaves_no_slot_and_no_memory() {
        for nth in 0..3 {
            let vm = Arc::new(FakeVm::default());
            vm.fail_call(nth, libc::ENOMEM);
            let space = AddressSpace::new(vm.clone());
            let error = map(&space, &[(0, MIB), (2 * MIB, MIB), (4 * MIB, MIB)]).unwrap_err();
            assert!(matches!(error, MapError::Slot { .. }), "{error}");
            assert_eq!(live_slots(&vm.calls()[..nth]).len(), nth);
            assert_eq!(live_slots(&vm.calls()).iter().filter(|&&id| id as usize != nth).count(), 0);
            assert_eq!(space.memory().num_regions(), 0);
        }
    }

    #[test]
    fn dropping_the_address_space_deletes_every_slot() {
        let vm = Arc::new(FakeVm::default());
        let space = AddressSpace::new(vm.clone());
        map(&space, &[(0, MIB), (2 * MIB, MIB)]).unwrap();
        assert_eq!(live_slots(&vm.calls()), [0, 1]);
        drop(space);
        assert_eq!(live_slots(&vm.calls()), [] as [u32; 0]);
    }

    #[test]
    fn ranges_that_are_not_whole_pages_are_refused() {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        for (start, size) in [(0, 0), (1, 4096), (0, 4097), (u64::MAX - 4095, 8192)] {
            let error = map(&space, &[(start, size)]).unwrap_err();
            assert!(matches!(error, MapError::BadRange { .. }), "{start:#x} {size:#x}: {error}");
        }
    }

    #[test]
    fn fault_c2_more_memory_than_the_host_has_addresses_is_an_error() {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        let error = map(&space, &[(0, 1 << 50)]).unwrap_err();
        assert!(matches!(error, MapError::Reserve { .. }), "{error}");
    }

    #[test]
    fn a_table_that_outlives_its_address_space_can_still_be_read() {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        map(&space, &[(0, MIB)]).unwrap();
        space.memory().write_slice(b"kept", GuestAddress(0)).unwrap();
        let table = space.memory().clone();
        drop(space);
        let mut back = [0; 4];
        table.read_slice(&mut back, GuestAddress(0)).unwrap();
        assert_eq!(&back, b"kept");
    }

    #[test]
    fn what_is_shared_says_its_file_and_several_ranges_are_in_it_one_after_the_other() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * MIB).unwrap();
        let kind = BackingKind::File { file: Arc::new(file), shared: true, offset: MIB };
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        let ranges = [RamRange { start: 0, size: MIB }, RamRange { start: 1 << 32, size: MIB }];
        space.map(&ranges, &Backing::new(kind.clone())).unwrap();
        let offsets: Vec<_> =
            space.memory().iter().map(|region| region.file_offset().unwrap().start()).collect();
        assert_eq!(offsets, [MIB, 2 * MIB]);
        let more = [RamRange { start: 2 << 32, size: 2 * MIB }, RamRange { start: 3 << 32, size: MIB }];
        let error = space.map(&more, &Backing::new(kind)).unwrap_err();
        assert!(matches!(error, MapError::Reserve { start, .. } if start == 3 << 32), "{error}");
        assert_eq!(space.memory().num_regions(), 2);
    }

    proptest! {
        #[test]
        fn overlapping_transactions_are_refused_whole(
            list in prop::collection::vec((0u64..16, 1u64..4), 1..6)
        ) {
            let vm = Arc::new(FakeVm::default());
            let space = AddressSpace::new(vm.clone());
            let mut model: Vec<(u64, u64)> = Vec::new();
            for &(start, size) in &list {
                let free = model.iter().all(|&(s, l)| start + size <= s || s + l <= start);
                let mapped = map(&space, &[(start * PAGE, size * PAGE)]).is_ok();
                prop_assert_eq!(mapped, free);
                if free {
                    model.push((start, size));
                }
            }
            model.sort_unstable();
            let memory = space.memory();
            let table: Vec<_> = memory.iter().map(|r| (r.start_addr().0 / PAGE, r.len() / PAGE)).collect();
            prop_assert_eq!(table, model.clone());
            prop_assert_eq!(live_slots(&vm.calls()).len(), model.len());
        }
    }
}
