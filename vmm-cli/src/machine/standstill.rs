//! `Standstill`: how the address space brings a machine to a standstill.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use vmm_memory::Quiesce;

use super::handle::Handle;

/// How long the vCPUs may take to leave the guest, or the devices they are in.
const LIMIT: Duration = Duration::from_secs(5);

/// The vCPUs of a machine, as long as there is one. Locked only to look.
pub(super) struct Standstill(Mutex<Weak<Handle>>);

impl Standstill {
    pub(super) fn new(machine: &Arc<Handle>) -> Self {
        Self(Mutex::new(Arc::downgrade(machine)))
    }

    /// There is no machine any more, nor anything that refers to it.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }

    fn machine(&self) -> Option<Arc<Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

impl Quiesce for Standstill {
    fn quiesce(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        match self.machine() {
            Some(machine) => Ok(machine.vcpus.hold(LIMIT)?),
            // Its vCPUs have ended.
            None => Ok(()),
        }
    }

    fn release(&self) {
        if let Some(machine) = self.machine() {
            machine.vcpus.let_go();
        }
    }
}
