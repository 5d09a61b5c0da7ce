//! `FaultObserver`: has the first touch of each page of guest RAM go to somebody who brings what is to be there, for a guest
//! that goes on before its memory is there.

use std::io;
use std::sync::Arc;

use crate::observer::{MemoryObserver, ObserverError};
use crate::region::RamRegion;

/// Whoever brings missing pages: a userfaultfd, and the thread that reads it.
pub trait FaultRanges: Send + Sync {
    /// From now on a touch of a missing page of `region`, by whomever, waits until the page was brought
    /// (`UFFDIO_REGISTER`).
    ///
    /// # Errors
    /// The kernel refuses.
    fn register(&self, region: &RamRegion) -> io::Result<()>;

    /// Whoever waits for a page of `region` goes on, and none is brought any more (`UFFDIO_UNREGISTER`).
    ///
    /// # Errors
    /// The kernel refuses; the region is still registered.
    fn unregister(&self, region: &RamRegion) -> io::Result<()>;
}

/// Registers guest RAM before the guest or a device can touch it, and as long as they can. As the first observer of an
/// address space it comes before those that touch what they map.
pub struct FaultObserver(Arc<dyn FaultRanges>);

impl FaultObserver {
    /// One that registers with `faults`.
    #[must_use]
    pub fn new(faults: Arc<dyn FaultRanges>) -> Self {
        Self(faults)
    }
}

impl MemoryObserver for FaultObserver {
    fn name(&self) -> &str {
        "page faults"
    }

    fn map(&self, region: &RamRegion) -> Result<(), ObserverError> {
        Ok(self.0.register(region)?)
    }

    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError> {
        Ok(self.0.unregister(region)?)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use vmm_core::fake::FakeVm;

    use super::*;
    use crate::sync::{Mutex, lock};
    use crate::{AddressSpace, Backing, Change, PAGE, RamRange};

    /// What is registered; refuses ranges of one page.
    #[derive(Default)]
    struct Ranges(Mutex<Vec<(RamRange, usize)>>);

    impl FaultRanges for Ranges {
        fn register(&self, region: &RamRegion) -> io::Result<()> {
            if region.range().size == PAGE {
                return Err(io::ErrorKind::Unsupported.into());
            }
            lock(&self.0).push((region.range(), region.host_address() as usize));
            Ok(())
        }

        fn unregister(&self, region: &RamRegion) -> io::Result<()> {
            let known = (region.range(), region.host_address() as usize);
            lock(&self.0).retain(|registered| *registered != known);
            Ok(())
        }
    }

    #[test]
    fn ram_is_registered_as_long_as_it_is_mapped() {
        let (low, high) =
            (RamRange { start: 0, size: 2 * PAGE }, RamRange { start: 1 << 32, size: 3 * PAGE });
        let vm = Arc::new(FakeVm::default());
        let space = AddressSpace::new(vm.clone());
        let ranges = Arc::new(Ranges::default());
        space.map(&[low], &Backing::default()).unwrap();
        space.add_observer(Arc::new(FaultObserver::new(Arc::clone(&ranges) as _))).unwrap();
        space.map(&[high], &Backing::default()).unwrap();
        let registered = || lock(&ranges.0).iter().map(|known| known.0).collect::<Vec<_>>();
        assert_eq!(registered(), [low, high]);
        space.apply([Change::Unmap(low)]).unwrap();
        assert_eq!(registered(), [high]);
        // Memory that nobody would bring is not shown to the guest.
        space.map(&[RamRange { start: 0, size: PAGE }], &Backing::default()).unwrap_err();
        assert_eq!((registered(), vm.slots().len()), (vec![high], 1));
        drop(space);
        assert!(registered().is_empty());
    }
}
