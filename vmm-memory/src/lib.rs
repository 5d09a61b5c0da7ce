//! Guest memory: the host memory behind it, the slots through which KVM shows it, and the table that devices read.
//!
//! [`AddressSpace`] is the one writer. Readers take a snapshot of the [`GuestMemory`] table for one exit or one queue
//! batch, without a lock.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

mod address_space;
mod backing;
mod region;
mod slot;

pub use address_space::{AddressSpace, MapError, RamRange};
pub use backing::{Backing, BackingError, BackingKind, DiscardError, HostMemory, HugePages};

/// Size of a page, the unit of memory slots, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// An immutable table of guest RAM, sorted by guest-physical address, over vm-memory's types.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
