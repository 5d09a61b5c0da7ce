//! How a VM tracks what its guest writes to.

use std::sync::{Arc, Weak};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};

use super::Vm;
use crate::seam::{DirtyLog, MemorySlot};
use crate::{DirtyMechanism, DirtyRings, IoctlError, RingCollector, RingItem, ioctl};

/// As KVM for x86 counts them.
const PAGE: u64 = 4096;

impl Vm {
    /// Has the guest's writes tracked by `mechanism`, wherever a slot asks for it; without this call, by
    /// [`DirtyMechanism::Bitmap`]. To be called once, before the first vCPU is made.
    ///
    /// # Errors
    /// KVM lacks the mechanism, refuses the size of the ring, or has been told already.
    pub fn set_dirty_mechanism(&self, mechanism: DirtyMechanism) -> Result<(), IoctlError> {
        if self.dirty.get().is_some() {
            let again = vmm_sys_util::errno::Error::new(libc::EBUSY);
            return Err(IoctlError::of("KVM_ENABLE_CAP (dirty log)")(again));
        }
        match mechanism {
            DirtyMechanism::Bitmap => {}
            DirtyMechanism::ManualProtect { initially_set } => {
                let set = if initially_set { KVM_DIRTY_LOG_INITIALLY_SET } else { 0 };
                self.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | set)
                    .map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)"))?;
            }
            DirtyMechanism::Ring { bytes } => {
                let new = self.fd.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into()) > 0;
                let capability = if new { KVM_CAP_DIRTY_LOG_RING_ACQ_REL } else { KVM_CAP_DIRTY_LOG_RING };
                self.enable(capability, bytes)
                    .map_err(IoctlError::of("KVM_ENABLE_CAP (KVM_CAP_DIRTY_LOG_RING)"))?;
            }
        }
        // A second caller at the same time was refused by the kernel, or asked for the same.
        let _ = self.dirty.set(mechanism);
        Ok(())
    }

    /// Where vCPUs hand over their rings.
    #[must_use]
    pub fn dirty_rings(&self) -> &Arc<DirtyRings> {
        &self.rings
    }
}

impl DirtyLog for Vm {
    fn dirty_mechanism(&self) -> DirtyMechanism {
        self.dirty.get().copied().unwrap_or_default()
    }

    fn dirty_log(&self, slot: &MemorySlot) -> Result<Vec<u64>, IoctlError> {
        let size = usize::try_from(slot.size).unwrap_or(usize::MAX);
        self.fd.get_dirty_log(slot.id, size).map_err(IoctlError::of("KVM_GET_DIRTY_LOG"))
    }

    fn clear_dirty_log(&self, slot: &MemorySlot, first: u64, pages: &[u64]) -> Result<(), IoctlError> {
        let rest = (slot.size / PAGE).saturating_sub(first);
        let count = rest.min(64 * pages.len() as u64);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        ioctl::clear_dirty_log(&self.fd, slot.id, first, count, pages)
            .map_err(IoctlError::of("KVM_CLEAR_DIRTY_LOG"))
    }

    fn collect_rings(&self, each: &mut dyn FnMut(RingItem)) -> Result<(), IoctlError> {
        self.rings.take_all(each);
        ioctl::reset_dirty_rings(&self.fd).map_err(IoctlError::of("KVM_RESET_DIRTY_RINGS"))
    }

    fn set_ring_collector(&self, collector: Weak<dyn RingCollector>) {
        self.rings.set_collector(collector);
    }
}
