//! `Region`: guest RAM in the terms of vm-memory, with the host memory behind it.
#![expect(unsafe_code, reason = "gives vm-memory the address of memory that it does not own")]

use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::backing::HostMemory;
use crate::{MapError, PAGE};

/// A range of guest-physical addresses and the host memory that it is. vm-memory's region has only its address: this value owns
/// the memory, and unmaps it if nobody else has the region any more.
pub(crate) struct Region {
    region: Arc<GuestRegionMmap>,
    /// Absent once it is given up.
    memory: Option<HostMemory>,
}

impl Region {
    /// Puts `memory` at the guest-physical address `start`.
    pub(crate) fn new(start: u64, memory: HostMemory) -> Result<Self, MapError> {
        let size = memory.len();
        Self::check(start, size)?;
        let bad_range = || MapError::BadRange { start, size };
        let length = usize::try_from(size).map_err(|_| bad_range())?;
        let mut builder = MmapRegionBuilder::new_with_bitmap(length, ())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_hugetlbfs(memory.page_size() != PAGE);
        if let Some((file, offset)) = memory.shared_file() {
            builder = builder.with_file_offset(FileOffset::from_arc(file, offset));
        }
        // SAFETY:
        // - `memory` maps `length` bytes there, readable and writable;
        // - it is unmapped only by `drop`, when nobody else has the region and nobody can get it.
        let builder = unsafe { builder.with_raw_mmap_pointer(memory.as_ptr()) };
        let mapping = builder.build().map_err(|_| bad_range())?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or_else(bad_range)?;
        Ok(Self { region: Arc::new(region), memory: Some(memory) })
    }

    /// Whether the guest can have RAM there.
    pub(crate) fn check(start: u64, size: u64) -> Result<(), MapError> {
        let whole_pages = start.is_multiple_of(PAGE) && size.is_multiple_of(PAGE) && size != 0;
        if !whole_pages || start.checked_add(size).is_none() {
            return Err(MapError::BadRange { start, size });
        }
        Ok(())
    }

    /// The region, for a table.
    pub(crate) fn region(&self) -> Arc<GuestRegionMmap> {
        Arc::clone(&self.region)
    }

    /// Leaves the memory mapped for good.
    pub(crate) fn keep_mapped(&mut self) {
        std::mem::forget(self.memory.take());
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // One that has none but this cannot be had by anybody else any more.
        if self.memory.is_some() && Arc::strong_count(&self.region) != 1 {
            tracing::error!("a table of guest memory outlives its address space; the memory is kept mapped");
            self.keep_mapped();
        }
    }
}
