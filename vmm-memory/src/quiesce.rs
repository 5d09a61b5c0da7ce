//! `Quiesce`: brings a machine to a standstill, for changes that a running guest would notice.

use std::error::Error;
use std::sync::Arc;

/// Whoever can bring the machine to a standstill.
///
/// KVM refuses to change the memory or the protection of a live slot, and a hole under running code, a stack or page
/// tables kills the guest. So while such a slot is deleted and made anew, no vCPU may be in the guest.
pub trait Quiesce: Send + Sync {
    /// Parks every vCPU outside `KVM_RUN`, and all that stands for devices which would not survive that guest RAM is missing
    /// from the table for a moment: workers, vhost. When it returns `Ok`, that holds until [`release`](Self::release). The
    /// address space calls it for one change at a time.
    ///
    /// # Errors
    /// Whoever did not come to rest; all others run again then.
    fn quiesce(&self) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Lets go on whatever [`quiesce`](Self::quiesce) stopped, and nothing else: a machine that was paused before stays so.
    fn release(&self);
}

/// A standstill. Dropped, it ends.
pub(crate) struct Quiesced(Arc<dyn Quiesce>);

impl Quiesced {
    pub(crate) fn begin(machine: &Arc<dyn Quiesce>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        machine.quiesce()?;
        Ok(Self(Arc::clone(machine)))
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.0.release();
    }
}
