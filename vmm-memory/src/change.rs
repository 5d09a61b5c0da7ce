//! `Change`: one step of a transaction, and why a transaction is refused or fails.

use std::sync::Arc;
use std::time::Duration;

use vm_memory::GuestMemoryError;
use vmm_core::{InReadSection, IoctlError};

use crate::backing::{BackingError, HostMemory};
use crate::observer::ObserverError;
use crate::range::RamRange;

/// What happens to a range of guest RAM. Ranges that are mapped are named whole, as they were mapped.
#[derive(Debug)]
pub enum Change {
    /// `memory` becomes guest RAM from `start` on.
    Map {
        /// First guest-physical address.
        start: u64,
        /// What is to be there; its length is the size of the range.
        memory: Arc<HostMemory>,
        /// Whether stores of the guest become MMIO exits.
        read_only: bool,
    },
    /// The range becomes a hole, and its memory goes back to the host unless somebody else has it too.
    Unmap(RamRange),
    /// Other host memory takes the place of that behind the range; what the guest has there is copied into it. The machine
    /// is brought to a standstill.
    Replace {
        /// The range.
        range: RamRange,
        /// The memory, of the same size.
        memory: HostMemory,
    },
    /// The range becomes read-only or writable. The machine is brought to a standstill.
    Protect {
        /// The range.
        range: RamRange,
        /// Whether stores of the guest become MMIO exits.
        read_only: bool,
    },
    /// The memory at the range, with what is in it, is at another guest-physical address.
    Move {
        /// The range.
        range: RamRange,
        /// The new first address.
        to: u64,
    },
}

/// Why a transaction is refused, or fails. Nothing has changed then, but for what [`ChangeError::Incomplete`] names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Start or size is no multiple of the page size, the size is 0, or the range passes the end of the address space.
    #[error("{0} is no range of whole pages for guest RAM")]
    BadRange(RamRange),
    /// The guest's processors have no such address.
    #[error("{range} passes the last guest-physical address, {last:#x}")]
    BeyondAddressSpace {
        /// What was to be RAM.
        range: RamRange,
        /// The highest address.
        last: u64,
    },
    /// RAM is there already.
    #[error("{range} overlaps guest RAM that is mapped: {with}")]
    Overlap {
        /// What was to be RAM.
        range: RamRange,
        /// What is.
        with: RamRange,
    },
    /// The addresses are kept for memory that is plugged.
    #[error("{range} overlaps addresses that are reserved for memory to be plugged: {by}")]
    Reserved {
        /// What was to be RAM.
        range: RamRange,
        /// What is reserved.
        by: RamRange,
    },
    /// It was plugged, and only its [`HotplugRegion`](crate::HotplugRegion) changes it.
    #[error("{0} is guest RAM that was plugged")]
    Plugged(RamRange),
    /// No RAM has been mapped as this range.
    #[error("{0} is not mapped as guest RAM")]
    NotMapped(RamRange),
    /// The memory that was to replace another has another size.
    #[error("{size:#x} bytes of host memory cannot replace {range}")]
    OtherSize {
        /// What was to be replaced.
        range: RamRange,
        /// Bytes of the new memory.
        size: u64,
    },
    /// Another transaction changes the same range, or ended badly there and left what cannot be used again.
    #[error("{0} is being changed already")]
    Busy(RamRange),
    /// The whole address space is kept as it is for a moment: an observer comes or goes, or another transaction has
    /// brought the machine to a standstill that this one needs too.
    #[error("the guest's address space is being changed already")]
    AllBusy,
    /// All slot numbers are taken.
    #[error("KVM takes at most {limit} memory slots (KVM_CAP_NR_MEMSLOTS)")]
    TooManySlots {
        /// The capability's value.
        limit: u32,
    },
    /// The caller is inside a read section, which the transaction would wait for.
    #[error(transparent)]
    InReadSection(#[from] InReadSection),
    /// The host does not give the memory.
    #[error("the host gives no memory for {range}")]
    Reserve {
        /// What was to be RAM.
        range: RamRange,
        /// Why not.
        #[source]
        source: BackingError,
    },
    /// KVM refuses to create or to delete the slot.
    #[error("cannot change the memory slot of {range}")]
    Slot {
        /// The range.
        range: RamRange,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
    /// An observer cannot map or unmap the range.
    #[error("{observer} cannot follow a change of {range}")]
    Observer {
        /// Its name.
        observer: String,
        /// The range.
        range: RamRange,
        /// Its answer.
        #[source]
        source: ObserverError,
    },
    /// Requests that have pinned the range did not end in time. The memory stays what it was.
    #[error("{range} is still in use by {} after {limit:?}", holders.join(", "))]
    Pinned {
        /// The range.
        range: RamRange,
        /// Whose requests they are.
        holders: Vec<String>,
        /// How long was waited.
        limit: Duration,
    },
    /// What the guest has in memory that was to be replaced cannot be copied.
    #[error("cannot copy {range} into other memory")]
    Copy {
        /// The range.
        range: RamRange,
        /// Why not.
        #[source]
        source: GuestMemoryError,
    },
    /// The machine did not come to a standstill.
    #[error("the machine cannot be brought to a standstill")]
    Quiesce {
        /// Who did not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A transaction failed, and so did undoing it. These ranges are not in the table. Whoever may still access their
    /// memory, the guest by a slot that cannot be deleted or an observer, accesses memory that is kept mapped for him.
    #[error("{cause}; and undoing it failed for {}", list(ranges))]
    Incomplete {
        /// The ranges that are not what they were before.
        ranges: Vec<RamRange>,
        /// What failed first.
        cause: Box<ChangeError>,
    },
}

fn list(ranges: &[RamRange]) -> String {
    let ranges: Vec<_> = ranges.iter().map(RamRange::to_string).collect();
    ranges.join(", ")
}
