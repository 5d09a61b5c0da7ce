//! `Doorbell`: a guest write that signals an eventfd inside the kernel (ioeventfd), as a value.

use std::io;
use std::sync::Arc;

use vmm_core::IoctlError;
use vmm_core::seam::{DoorbellAddress, DoorbellFds};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a doorbell cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// No eventfd.
    #[error("cannot make an eventfd for the doorbell at {address:#x}")]
    EventFd {
        /// Where the doorbell is.
        address: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM refuses it, for example because the same doorbell exists (`EEXIST`).
    #[error("cannot attach the doorbell at {address:#x}")]
    Attach {
        /// Where the doorbell is.
        address: u64,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
}

/// A doorbell that exists as long as this value. Dropped, guest writes to its address exit to user space again.
pub struct Doorbell {
    vm: Arc<dyn DoorbellFds>,
    address: DoorbellAddress,
    fd: Arc<EventFd>,
}

impl Doorbell {
    /// Attaches a doorbell that signals `fd`.
    pub fn attach(
        vm: Arc<dyn DoorbellFds>,
        address: DoorbellAddress,
        fd: Arc<EventFd>,
    ) -> Result<Self, DoorbellError> {
        vm.attach_doorbell(&address, &fd)
            .map_err(|source| DoorbellError::Attach { address: address.address, source })?;
        Ok(Self { vm, address, fd })
    }

    /// A descriptor for a doorbell at `address`: close-on-exec, non-blocking.
    pub fn eventfd(address: u64) -> Result<Arc<EventFd>, DoorbellError> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map(Arc::new)
            .map_err(|source| DoorbellError::EventFd { address, source })
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Err(error) = self.vm.detach_doorbell(&self.address, &self.fd) {
            tracing::error!(address = ?self.address, %error, "cannot detach a doorbell");
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_core::fake::{FakeCall, FakeVm};
    use vmm_core::seam::DoorbellSpace;

    use super::*;

    const ADDRESS: DoorbellAddress =
        DoorbellAddress { space: DoorbellSpace::Mmio, address: 0xd000_0010, width: 4, datamatch: None };

    #[test]
    fn a_doorbell_is_attached_and_detached_by_its_lifetime() {
        let vm = Arc::new(FakeVm::default());
        drop(Doorbell::attach(vm.clone(), ADDRESS, Doorbell::eventfd(0).unwrap()).unwrap());
        assert_eq!(vm.calls(), [FakeCall::AttachDoorbell(ADDRESS), FakeCall::DetachDoorbell(ADDRESS)]);
    }

    #[test]
    fn fault_b7_a_refused_doorbell_is_an_error_and_is_not_detached() {
        let vm = Arc::new(FakeVm::default());
        vm.fail_call(0, libc::EEXIST);
        let refused = Doorbell::attach(vm.clone(), ADDRESS, Doorbell::eventfd(0).unwrap());
        assert!(matches!(refused, Err(DoorbellError::Attach { address: 0xd000_0010, .. })));
        assert_eq!(vm.calls(), [FakeCall::AttachDoorbell(ADDRESS)]);
    }
}
