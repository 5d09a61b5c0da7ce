//! How observers come and go.

use std::sync::Arc;

use super::AddressSpace;
use super::commit::failed;
use crate::change::ChangeError;
use crate::observer::MemoryObserver;
use crate::region::RamRegion;
use crate::sync::lock;

impl AddressSpace {
    /// Has `observer` map all that is mapped, and follow all changes from now on. Observers map in the order in which they
    /// came, and unmap in reverse.
    ///
    /// # Errors
    /// [`ChangeError::AllBusy`] while a transaction is under way; [`ChangeError::Observer`]: it has nothing mapped then.
    pub fn add_observer(&self, observer: Arc<dyn MemoryObserver>) -> Result<(), ChangeError> {
        let exclusive = Exclusive::begin(self)?;
        each(&exclusive.regions, |region| observer.map(region), |region| observer.unmap(region))
            .map_err(|(region, source)| failed(observer.name(), region.range(), source))?;
        lock(&self.registry).observers().push(observer);
        Ok(())
    }

    /// Has `observer`, which was added, unmap all, and forgets it.
    ///
    /// # Errors
    /// As above; it has everything mapped then and goes on observing.
    pub fn remove_observer(&self, observer: &Arc<dyn MemoryObserver>) -> Result<(), ChangeError> {
        let exclusive = Exclusive::begin(self)?;
        let is_it = |other: &Arc<dyn MemoryObserver>| Arc::ptr_eq(other, observer);
        if !lock(&self.registry).observers().iter().any(is_it) {
            return Ok(());
        }
        each(&exclusive.regions, |region| observer.unmap(region), |region| observer.map(region))
            .map_err(|(region, source)| failed(observer.name(), region.range(), source))?;
        lock(&self.registry).observers().retain(|other| !is_it(other));
        Ok(())
    }
}

/// Does something for each region; if it fails, undoes it for those before.
fn each<E: std::fmt::Display>(
    regions: &[Arc<RamRegion>],
    action: impl Fn(&RamRegion) -> Result<(), E>,
    undo: impl Fn(&RamRegion) -> Result<(), E>,
) -> Result<(), (&RamRegion, E)> {
    for (position, region) in regions.iter().enumerate() {
        if let Err(error) = action(region) {
            for done in regions.iter().take(position).rev() {
                if let Err(error) = undo(done) {
                    tracing::error!(range = %done.range(), %error, "an observer does not take its step back");
                    // Whether it has the memory mapped, nobody knows.
                    done.block().leak();
                }
            }
            return Err((region, error));
        }
    }
    Ok(())
}

/// Keeps transactions out of an address space. Dropped, it lets them in again.
struct Exclusive<'a> {
    space: &'a AddressSpace,
    regions: Vec<Arc<RamRegion>>,
}

impl<'a> Exclusive<'a> {
    fn begin(space: &'a AddressSpace) -> Result<Self, ChangeError> {
        let regions = lock(&space.registry).begin_exclusive()?;
        Ok(Self { space, regions })
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        lock(&self.space.registry).end_exclusive();
    }
}
