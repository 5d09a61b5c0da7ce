//! `VhostMemory`: what of guest RAM the kernel has a map of, for all devices of a machine that have it serve queues.
//!
//! Lock order: `state` here, in it that of each [`Backend`].

use std::io;
use std::sync::{Arc, Mutex, Weak};

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_memory::{GuestMemory, MemoryObserver, ObserverError, RamRegion};

use super::Backend;
use crate::sync::lock;

/// The kernel does not take the guest RAM that is to be.
#[derive(Debug, thiserror::Error)]
#[error(
    "vhost does not take {regions} regions of guest RAM; how many it takes is the parameter max_mem_regions of the module vhost"
)]
struct TableRefused {
    regions: usize,
    #[source]
    source: io::Error,
}

/// Follows an address space, of which it is an observer. A region is known to the kernel before the guest sees it, and forgotten when this
/// says that it is unmapped.
pub struct VhostMemory(Mutex<State>);

struct State {
    /// Regions are shared with the address space; one that has left it is not in here.
    memory: Arc<GuestMemory>,
    backends: Vec<Weak<Backend>>,
}

impl VhostMemory {
    /// Without RAM so far.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { memory: Arc::default(), backends: Vec::new() })))
    }

    /// Tells `backend` what there is, and of all changes as long as it is there.
    pub(super) fn join(&self, backend: &Arc<Backend>) -> io::Result<()> {
        let mut state = lock(&self.0);
        backend.set_memory(&state.memory)?;
        state.backends.retain(|other| other.strong_count() > 0);
        state.backends.push(Arc::downgrade(backend));
        Ok(())
    }

    /// Goes over to the memory that `change` makes of what there is, with all backends or with none.
    fn change(
        &self,
        change: impl FnOnce(&GuestMemory) -> Result<GuestMemory, ObserverError>,
    ) -> Result<(), ObserverError> {
        let mut state = lock(&self.0);
        let new = Arc::new(change(&state.memory)?);
        let backends: Vec<_> = state.backends.iter().filter_map(Weak::upgrade).collect();
        for (position, backend) in backends.iter().enumerate() {
            let Err(source) = backend.set_memory(&new) else { continue };
            for told in backends.iter().take(position) {
                if let Err(error) = told.set_memory(&state.memory) {
                    tracing::error!(%error, "vhost does not take back the guest RAM that it had");
                }
            }
            return Err(TableRefused { regions: new.num_regions(), source }.into());
        }
        state.memory = new;
        Ok(())
    }
}

impl MemoryObserver for VhostMemory {
    fn name(&self) -> &str {
        "vhost"
    }

    fn map(&self, region: &RamRegion) -> Result<(), ObserverError> {
        self.change(|memory| Ok(memory.insert_region(Arc::new(region.clone()))?))
    }

    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let range = region.range();
        self.change(|memory| Ok(memory.remove_region(GuestAddress(range.start), range.size)?.0))
    }
}
