//! `Standstill`: how the address space brings a machine to a standstill.

use std::error::Error;
use std::sync::Weak;
use std::time::Duration;

use vmm_memory::Quiesce;

use super::handle::Handle;

/// How long the vCPUs may take to leave the guest, or the devices they are in.
const LIMIT: Duration = Duration::from_secs(5);

/// The vCPUs of a machine, as long as there is one.
pub(super) struct Standstill(pub(super) Weak<Handle>);

impl Quiesce for Standstill {
    fn quiesce(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        match self.0.upgrade() {
            Some(machine) => Ok(machine.vcpus.hold(LIMIT)?),
            // Its vCPUs have ended.
            None => Ok(()),
        }
    }

    fn release(&self) {
        if let Some(machine) = self.0.upgrade() {
            machine.vcpus.let_go();
        }
    }
}
