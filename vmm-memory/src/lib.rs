//! Guest memory: the host memory behind it, the slots through which KVM shows it, and the table that devices read.
//!
//! * [`HostMemory`]: what [`Backing`] describes, mapped, with guard pages around it;
//! * [`AddressSpace`] is the one writer: transactions of [`Change`]s, while the guest and its devices go on;
//! * readers take a snapshot of the [`GuestMemory`] table for one exit or one queue batch, without a lock; what outlives
//!   that holds a [`RegionPin`], or [`PinnedBuffers`] in which the kernel reads and writes; a device has a
//!   [`MemoryReader`]; [`Scattered`] is for one system call inside a batch;
//! * [`HotplugRegion`]: RAM that is plugged and unplugged in blocks;
//! * [`MemoryObserver`]: whoever keeps a map of guest RAM of its own and has to follow;
//! * [`DirtyTracker`]: which pages have been written to, by the guest and by devices;
//! * [`FaultObserver`]: registers guest RAM with whoever brings pages at their first touch;
//! * [`Quiesce`]: who brings the machine to a standstill, for the few changes that a running guest would notice.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

mod address_space;
mod backing;
mod block;
mod change;
mod dirty;
mod faults;
mod hotplug;
mod observer;
mod pin;
mod pinned;
mod quiesce;
mod range;
mod reader;
mod region;
mod scattered;
mod slot;
mod slot_ids;
mod sync;
#[cfg(all(test, loom))]
mod unmap_loom;

pub use address_space::AddressSpace;
pub use backing::{Backing, BackingError, BackingKind, DiscardError, HostMemory, HugePages, PREFAULT};
pub use change::{Change, ChangeError};
pub use dirty::{DirtyError, DirtyMap, DirtyPages, DirtyTracker};
pub use faults::{FaultObserver, FaultRanges};
pub use hotplug::{BlockState, HotplugError, HotplugLayout, HotplugRegion};
pub use observer::{MemoryObserver, ObserverError};
pub use pin::{Leaving, PinHolder, RegionPin};
pub use pinned::{PinError, PinnedBuffers};
pub use quiesce::Quiesce;
pub use range::RamRange;
pub use reader::MemoryReader;
pub use region::{RamRegion, RamSlice};
pub use scattered::Scattered;

/// Size of a page, the unit of memory slots, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// An immutable table of guest RAM, sorted by guest-physical address, with vm-memory's traits.
pub type GuestMemory = vm_memory::GuestRegionCollection<RamRegion>;
