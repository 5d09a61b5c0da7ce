//! `MemoryObserver`: whoever keeps a map of guest RAM of its own.

use std::error::Error;

use crate::region::RamRegion;

/// Why an observer cannot do what the address space asks for.
pub type ObserverError = Box<dyn Error + Send + Sync>;

/// Somebody besides KVM who accesses guest RAM without reading the table: vhost, VFIO, an IOMMU, registered buffers of
/// io_uring.
///
/// Called on the thread that changes the address space, under no lock of this crate. Changes of different regions may
/// call at the same time.
pub trait MemoryObserver: Send + Sync {
    /// What errors call it.
    fn name(&self) -> &str;

    /// Maps `region`, which nobody in the guest and no device can see yet.
    ///
    /// # Errors
    /// Fails the change, which is then undone.
    fn map(&self, region: &RamRegion) -> Result<(), ObserverError>;

    /// Unmaps `region`, which nobody in the guest and no device sees any more, but for the parts that come again at the same
    /// address. When it returns `Ok`, nothing that this observer stands for accesses the memory, or will.
    ///
    /// # Errors
    /// Fails the change, which is then undone; the region is still mapped.
    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError>;
}
