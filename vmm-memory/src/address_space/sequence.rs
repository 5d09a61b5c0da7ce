//! The order in which a region goes and comes.
//!
//! Written down once, for the transaction that executes it and for the model that checks it.

/// What it takes to remove regions.
pub(crate) trait Removal {
    /// Why a step fails.
    type Error;
    /// The table that has just been replaced.
    type Replaced;

    /// Publishes a table without the regions.
    fn unpublish(&mut self) -> Self::Replaced;
    /// Takes them from the guest. When it returns, no vCPU accesses them.
    fn delete_slots(&mut self) -> Result<(), Self::Error>;
    /// Waits for those who read `replaced` or an older table.
    fn wait_for_readers(&mut self, replaced: Self::Replaced) -> Result<(), Self::Error>;
    /// Waits for the requests of readers that are still in flight.
    fn wait_for_pins(&mut self) -> Result<(), Self::Error>;
    /// Has the observers unmap them.
    fn unmap(&mut self) -> Result<(), Self::Error>;
}

/// What it takes to insert regions.
pub(crate) trait Insertion {
    /// Why a step fails.
    type Error;

    /// Has the observers map them.
    fn map(&mut self) -> Result<(), Self::Error>;
    /// Shows them to the guest.
    fn create_slots(&mut self) -> Result<(), Self::Error>;
    /// Publishes a table with them.
    fn publish(&mut self);
}

/// Nobody finds the regions any more before anybody is waited for, and all are waited for before an observer lets go. When
/// it returns `Ok`, nobody accesses their memory.
pub(crate) fn remove<R: Removal>(regions: &mut R) -> Result<(), R::Error> {
    let replaced = regions.unpublish();
    regions.delete_slots()?;
    regions.wait_for_readers(replaced)?;
    // Whoever has pinned a region has done so as a reader.
    regions.wait_for_pins()?;
    regions.unmap()
}

/// All that is behind a region is in place before anybody sees it: a guest that tells a device of it, and a device that
/// tells the guest.
pub(crate) fn insert<I: Insertion>(regions: &mut I) -> Result<(), I::Error> {
    regions.map()?;
    regions.create_slots()?;
    regions.publish();
    Ok(())
}
