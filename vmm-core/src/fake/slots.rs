//! The memory slots of `FakeVm`, which refuses what KVM refuses.

use super::{FakeCall, FakeVm, failed};
use crate::IoctlError;
use crate::seam::{MemorySlot, MemorySlots};

/// As in KVM for x86.
const LIMIT: u32 = 32_764;

const IOCTL: &str = "KVM_SET_USER_MEMORY_REGION";

/// The slots that exist, in no order.
#[derive(Debug)]
pub(super) struct Slots {
    live: Vec<MemorySlot>,
    limit: u32,
}

impl Default for Slots {
    fn default() -> Self {
        Self { live: Vec::new(), limit: LIMIT }
    }
}

impl Slots {
    /// What the ioctl does, or its error number.
    pub(super) fn set(&mut self, slot: &MemorySlot) -> Result<(), i32> {
        if slot.id >= self.limit {
            return Err(libc::EINVAL);
        }
        let old = self.live.iter().position(|live| live.id == slot.id);
        if slot.size == 0 {
            let old = old.ok_or(libc::EINVAL)?;
            self.live.swap_remove(old);
            return Ok(());
        }
        let end = slot.guest_address.checked_add(slot.size).ok_or(libc::EINVAL)?;
        let whole_pages = [slot.guest_address, slot.size, slot.host_address];
        if whole_pages.iter().any(|value| !value.is_multiple_of(4096)) {
            return Err(libc::EINVAL);
        }
        let changeable = |live: &MemorySlot| MemorySlot {
            guest_address: slot.guest_address,
            log_dirty: slot.log_dirty,
            ..*live
        };
        if let Some(live) = old.and_then(|old| self.live.get(old))
            && changeable(live) != *slot
        {
            return Err(libc::EINVAL);
        }
        let overlaps = |live: &MemorySlot| {
            live.id != slot.id
                && slot.guest_address < live.guest_address + live.size
                && live.guest_address < end
        };
        if self.live.iter().any(overlaps) {
            return Err(libc::EEXIST);
        }
        self.live.retain(|live| live.id != slot.id);
        self.live.push(*slot);
        Ok(())
    }
}

impl FakeVm {
    /// The slots that exist, by guest-physical address.
    #[must_use]
    pub fn slots(&self) -> Vec<MemorySlot> {
        let mut slots = self.state().slots.live.clone();
        slots.sort_unstable_by_key(|slot| slot.guest_address);
        slots
    }

    /// Makes it a VM with at most so many slots.
    pub fn limit_slots(&self, limit: u32) {
        self.state().slots.limit = limit;
    }
}

impl MemorySlots for FakeVm {
    fn slot_limit(&self) -> u32 {
        self.state().slots.limit
    }

    #[expect(unsafe_code, reason = "the trait's contract; the fake never touches the memory")]
    unsafe fn set_memory_slot(&self, slot: &MemorySlot) -> Result<(), IoctlError> {
        let mut state = self.state();
        state.record(IOCTL, FakeCall::SetSlot(*slot))?;
        state.slots.set(slot).map_err(|errno| failed(IOCTL, errno))?;
        state.dirty.follow(slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: MemorySlot = MemorySlot {
        id: 1,
        guest_address: 0x1000,
        size: 0x2000,
        host_address: 0x8000,
        read_only: false,
        log_dirty: false,
    };

    #[test]
    fn a_live_slot_moves_and_is_tracked_and_changes_nothing_else() {
        let mut slots = Slots::default();
        slots.set(&SLOT).unwrap();
        slots.set(&MemorySlot { guest_address: 0x2000, ..SLOT }).unwrap();
        slots.set(&MemorySlot { log_dirty: true, ..SLOT }).unwrap();
        for refused in [
            MemorySlot { size: 0x1000, ..SLOT },
            MemorySlot { host_address: 0x9000, ..SLOT },
            MemorySlot { read_only: true, ..SLOT },
        ] {
            assert_eq!(slots.set(&refused), Err(libc::EINVAL), "{refused:?}");
        }
    }

    #[test]
    fn what_overlaps_passes_the_limit_or_does_not_exist_is_refused() {
        let mut slots = Slots { limit: 3, ..Slots::default() };
        slots.set(&SLOT).unwrap();
        assert_eq!(slots.set(&MemorySlot { id: 2, guest_address: 0x2000, ..SLOT }), Err(libc::EEXIST));
        assert_eq!(slots.set(&MemorySlot { id: 3, guest_address: 0x5000, ..SLOT }), Err(libc::EINVAL));
        assert_eq!(slots.set(&MemorySlot { id: 2, size: 0, ..SLOT }), Err(libc::EINVAL));
        slots.set(&MemorySlot { size: 0, ..SLOT }).unwrap();
        slots.set(&MemorySlot { id: 2, guest_address: 0x2000, ..SLOT }).unwrap();
    }
}
