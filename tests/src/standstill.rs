//! `Standstill`: brings the vCPUs of a trial to a standstill, as the monitor does with its own.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use vmm_memory::Quiesce;
use vmm_vcpu::Vcpus;

/// Longer than any standstill may take here.
const LIMIT: Duration = Duration::from_secs(30);

/// The vCPUs that are held.
pub struct Standstill(pub Arc<Vcpus>);

impl Quiesce for Standstill {
    fn quiesce(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.hold(LIMIT)?)
    }

    fn release(&self) {
        self.0.let_go();
    }
}
