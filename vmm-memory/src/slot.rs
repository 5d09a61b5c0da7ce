//! `Slot`: host memory that the guest can see, as one value.
#![expect(unsafe_code, reason = "the guest writes to the memory behind a slot")]

use std::sync::Arc;

use vm_memory::GuestMemoryRegion;
use vmm_core::IoctlError;
use vmm_core::seam::{MemorySlot, MemorySlots};

use crate::region::Region;

/// A KVM memory slot together with the host memory behind it. Dropped, the slot is deleted first, so the guest never
/// sees memory that is not there.
pub(crate) struct Slot {
    vm: Arc<dyn MemorySlots>,
    slot: MemorySlot,
    /// Keeps the memory mapped as long as the slot is there.
    region: Region,
}

impl Slot {
    /// Shows `region` to the guest as slot `id`; gives it back if that fails.
    pub(crate) fn create(
        vm: Arc<dyn MemorySlots>,
        id: u32,
        region: Region,
    ) -> Result<Self, (IoctlError, Region)> {
        let mapped = region.region();
        let slot = MemorySlot {
            id,
            guest_address: mapped.start_addr().0,
            size: mapped.len(),
            host_address: mapped.as_ptr() as u64,
            read_only: false,
        };
        // SAFETY:
        // - `region` maps `size` bytes at `host_address`: memory made for the guest, which nothing else refers to;
        // - `self.region` keeps it mapped until `drop` has deleted the slot.
        match unsafe { vm.set_memory_slot(&slot) } {
            Ok(()) => Ok(Self { vm, slot, region }),
            Err(error) => Err((error, region)),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.slot.id
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let deletion = MemorySlot { size: 0, ..self.slot };
        // SAFETY:
        // - a slot of size 0 refers to no memory.
        if let Err(error) = unsafe { self.vm.set_memory_slot(&deletion) } {
            // The guest could still write to memory that is about to be unmapped and reused.
            tracing::error!(slot = self.slot.id, %error, "cannot delete a memory slot; its memory is kept mapped");
            self.region.keep_mapped();
        }
    }
}
