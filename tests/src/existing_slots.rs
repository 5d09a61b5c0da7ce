//! Which memory slots KVM has: it deletes only those that are there.
#![expect(unsafe_code, reason = "calls the seam through which the guest is shown memory")]

use std::ops::Range;

use vmm_core::Vm;
use vmm_core::seam::{MemorySlot, MemorySlots};

/// Deletes every slot of `vm` with one of these numbers; returns which there were.
#[must_use]
pub fn existing_slots(vm: &Vm, numbers: Range<u32>) -> Vec<u32> {
    let was_there = |id: &u32| {
        let none = MemorySlot {
            id: *id,
            guest_address: 0,
            size: 0,
            host_address: 0,
            read_only: false,
            log_dirty: false,
        };
        // SAFETY:
        // - a slot of size 0 refers to no memory.
        unsafe { vm.set_memory_slot(&none) }.is_ok()
    };
    numbers.filter(was_there).collect()
}
