//! `Slot`: a KVM memory slot together with the guest RAM that it shows.
#![expect(unsafe_code, reason = "the guest writes to the memory behind a slot")]

use std::sync::Arc;

use vmm_core::IoctlError;
use vmm_core::seam::{MemorySlot, MemorySlots};

use crate::region::RamRegion;

/// A slot number and the region that it is for. Dropped, it deletes the slot if there is one, so the guest never sees
/// memory that is not there.
pub(crate) struct Slot {
    vm: Arc<dyn MemorySlots>,
    id: u32,
    region: Arc<RamRegion>,
    exists: bool,
}

impl Slot {
    /// To be created.
    pub(crate) fn new(vm: Arc<dyn MemorySlots>, id: u32, region: Arc<RamRegion>) -> Self {
        Self { vm, id, region, exists: false }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn exists(&self) -> bool {
        self.exists
    }

    pub(crate) fn region(&self) -> &Arc<RamRegion> {
        &self.region
    }

    /// Shows the region to the guest.
    pub(crate) fn create(&mut self) -> Result<(), IoctlError> {
        // SAFETY:
        // - the region maps as many bytes at its host address as the slot has: memory made for the guest, to which all
        //   accesses are volatile;
        // - `self.region` keeps it mapped until `delete` has succeeded; `drop` sees to that.
        unsafe { self.vm.set_memory_slot(&self.request(self.region.range().size)) }?;
        self.exists = true;
        Ok(())
    }

    /// Takes it from the guest.
    pub(crate) fn delete(&mut self) -> Result<(), IoctlError> {
        // SAFETY:
        // - a slot of size 0 refers to no memory.
        unsafe { self.vm.set_memory_slot(&self.request(0)) }?;
        self.exists = false;
        Ok(())
    }

    /// Deletes the slot if there is one, for good: whether that could be done. If not, the memory is kept mapped.
    pub(crate) fn end(&mut self) -> bool {
        if self.exists
            && let Err(error) = self.delete()
        {
            // The guest could still write to memory that is about to be unmapped and reused.
            tracing::error!(slot = self.id, %error, "cannot delete a memory slot; its memory is kept mapped");
            self.region.block().leak();
            self.exists = false;
            return false;
        }
        true
    }

    fn request(&self, size: u64) -> MemorySlot {
        MemorySlot {
            id: self.id,
            guest_address: self.region.range().start,
            size,
            host_address: self.region.host_address() as u64,
            read_only: self.region.is_read_only(),
            // A tracker that stands before the VM decides that.
            log_dirty: false,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.end();
    }
}
