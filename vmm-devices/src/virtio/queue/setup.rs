//! Where the areas of a queue are, and whether a queue can be there (virtio 1.3, section 2.7).

use virtio_queue::{QueueState as RingState, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};
use vmm_memory::GuestMemory;

use super::QueueState;

/// The largest queue (virtio 1.3, section 2.7).
const MAX_SIZE: u16 = 32768;

/// Bytes of a descriptor, of an entry of the available ring, of an element of the used ring.
pub(super) const DESCRIPTOR: u64 = 16;
const AVAILABLE_ENTRY: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// Offsets in both rings: the flags, the index, the ring itself.
pub(super) const FLAGS: u64 = 0;
pub(super) const INDEX: u64 = 2;
const RING: u64 = 4;
/// The word after the ring: `used_event` or `avail_event`.
const EVENT: u64 = 2;

/// A queue cannot be where the driver wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The saved state is of another version.
    #[error("the state of a queue has version {version}, not {}", QueueState::VERSION)]
    Version {
        /// Its version.
        version: u16,
    },
    /// No queue has this size.
    #[error("a queue of {size} descriptors: the size is a power of two up to {limit}")]
    Size {
        /// Number of descriptors.
        size: u16,
        /// The largest.
        limit: u16,
    },
    /// An area starts at an address that no such area may start at.
    #[error("the {area} at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which one.
        area: &'static str,
        /// Where it is.
        address: u64,
        /// What its address has to be a multiple of.
        alignment: u64,
    },
    /// An area is not in guest RAM from its first byte to its last.
    #[error("the {area} at {address:#x}, {length} bytes, is not in guest RAM")]
    NotRam {
        /// Which one.
        area: &'static str,
        /// Where it is.
        address: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Two areas share memory.
    #[error("the {one} and the {other} overlap")]
    Overlap {
        /// One of them.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A saved queue has more chains in flight than descriptors.
    #[error("{in_flight} chains are in flight in a queue of {size}")]
    InFlight {
        /// How many.
        in_flight: u16,
        /// Number of descriptors.
        size: u16,
    },
}

/// The addresses of a queue, checked: no sum of one of them and an offset inside its area overflows.
#[derive(Clone, Copy)]
pub(super) struct Areas {
    pub(super) descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
    pub(super) size: u16,
}

impl Areas {
    pub(super) fn of(ring: &virtio_queue::Queue) -> Self {
        Self {
            descriptors: GuestAddress(ring.desc_table()),
            available: GuestAddress(ring.avail_ring()),
            used: GuestAddress(ring.used_ring()),
            size: ring.size(),
        }
    }

    /// A word of the available ring.
    pub(super) fn available(&self, offset: u64) -> GuestAddress {
        self.available.unchecked_add(offset)
    }

    /// A word of the used ring.
    pub(super) fn used(&self, offset: u64) -> GuestAddress {
        self.used.unchecked_add(offset)
    }

    /// The entry of the available ring with this index, which counts on when the ring is full.
    pub(super) fn available_entry(&self, index: u16) -> GuestAddress {
        // The size is a power of two.
        let slot = u64::from(index & self.size.saturating_sub(1));
        self.available(RING.saturating_add(slot.saturating_mul(AVAILABLE_ENTRY)))
    }

    /// The element of the used ring with this index, which counts on when the ring is full.
    pub(super) fn used_element(&self, index: u16) -> GuestAddress {
        let slot = u64::from(index & self.size.saturating_sub(1));
        self.used(RING.saturating_add(slot.saturating_mul(USED_ELEMENT)))
    }

    /// Where the driver says after which used index it wants an interrupt.
    pub(super) fn used_event(&self) -> GuestAddress {
        self.available(ring_end(self.size, AVAILABLE_ENTRY))
    }

    /// Where the device says after which available index it wants a notification.
    pub(super) fn available_event(&self) -> GuestAddress {
        self.used(ring_end(self.size, USED_ELEMENT))
    }
}

fn ring_end(size: u16, element: u64) -> u64 {
    element.saturating_mul(size.into()).saturating_add(RING)
}

/// One area, as it is checked.
#[derive(Clone, Copy)]
struct Area {
    name: &'static str,
    address: u64,
    length: u64,
    alignment: u64,
}

impl Area {
    fn check(self, memory: &GuestMemory) -> Result<(), SetupError> {
        let Self { name: area, address, length, alignment } = self;
        if !address.is_multiple_of(alignment) {
            return Err(SetupError::Alignment { area, address, alignment });
        }
        let is_ram =
            usize::try_from(length).is_ok_and(|length| memory.check_range(GuestAddress(address), length));
        if address.checked_add(length).is_none() || !is_ram {
            return Err(SetupError::NotRam { area, address, length });
        }
        Ok(())
    }

    fn overlaps(self, other: Self) -> bool {
        self.address < other.address.saturating_add(other.length)
            && other.address < self.address.saturating_add(self.length)
    }
}

/// The indices of a queue that is as `state` says.
pub(super) fn ring(
    state: &QueueState,
    event_idx: bool,
    memory: &GuestMemory,
) -> Result<virtio_queue::Queue, SetupError> {
    let size = state.size;
    if state.version != QueueState::VERSION {
        return Err(SetupError::Version { version: state.version });
    }
    let bad_size = SetupError::Size { size, limit: MAX_SIZE };
    if !size.is_power_of_two() {
        return Err(bad_size);
    }
    let in_flight = state.next_available.wrapping_sub(state.next_used);
    if in_flight > size {
        return Err(SetupError::InFlight { in_flight, size });
    }
    check_areas(state, memory)?;
    let state = RingState {
        max_size: size,
        next_avail: state.next_available,
        next_used: state.next_used,
        event_idx_enabled: event_idx,
        size,
        ready: true,
        desc_table: state.descriptor_table,
        avail_ring: state.available_ring,
        used_ring: state.used_ring,
    };
    state.try_into().map_err(|_| bad_size)
}

fn check_areas(state: &QueueState, memory: &GuestMemory) -> Result<(), SetupError> {
    let ring = |element| ring_end(state.size, element).saturating_add(EVENT);
    let area = |name, address, length, alignment| Area { name, address, length, alignment };
    let table = DESCRIPTOR.saturating_mul(state.size.into());
    let areas = [
        area("descriptor table", state.descriptor_table, table, 16),
        area("available ring", state.available_ring, ring(AVAILABLE_ENTRY), 2),
        area("used ring", state.used_ring, ring(USED_ELEMENT), 4),
    ];
    areas.iter().try_for_each(|area| area.check(memory))?;
    let [table, available, used] = areas;
    for (one, other) in [(table, available), (table, used), (available, used)] {
        if one.overlaps(other) {
            return Err(SetupError::Overlap { one: one.name, other: other.name });
        }
    }
    Ok(())
}
