//! `IrqRouter`: gives out interrupt lines and takes them back.
//!
//! KVM's default table routes GSIs 0–15 to both PICs and the I/O APIC and 16–23 to the I/O APIC; that is all that
//! pins need, so giving out a line costs one `KVM_IRQFD` and no `KVM_SET_GSI_ROUTING`.
//!
//! Lock order: the table's mutex is innermost and is never held across an ioctl, a wait or a callback.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::table::{GsiError, GsiTable};
use super::{IrqLine, IrqTrigger};
use crate::IoctlError;
use crate::seam::IrqFds;

/// Why an interrupt line cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// The GSI cannot be had.
    #[error(transparent)]
    Gsi(#[from] GsiError),
    /// No eventfd for the line.
    #[error("cannot make an eventfd for GSI {gsi}")]
    EventFd {
        /// The line.
        gsi: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM refuses to connect the eventfd.
    #[error("cannot connect GSI {gsi}")]
    Attach {
        /// The line.
        gsi: u32,
        /// The ioctl that failed.
        #[source]
        source: IoctlError,
    },
}

/// What every line needs to be taken back.
pub(super) struct Shared {
    pub(super) vm: Arc<dyn IrqFds>,
    table: Mutex<GsiTable>,
}

impl Shared {
    pub(super) fn release(&self, gsi: u32) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).release(gsi);
    }
}

/// The owner of the GSI table of one VM. Changing it takes a lock, raising an interrupt takes none.
#[derive(Clone)]
pub struct IrqRouter(Arc<Shared>);

impl IrqRouter {
    /// A router over `vm`, whose irqchip exists already.
    #[must_use]
    pub fn new(vm: Arc<dyn IrqFds>) -> Self {
        Self(Arc::new(Shared { vm, table: Mutex::default() }))
    }

    /// Makes the edge-triggered line `gsi` for `owner` (a device name for messages). Takes one descriptor.
    ///
    /// # Errors
    /// The GSI is taken or has no pin, or the host has no descriptor left; nothing is changed then.
    pub fn edge_line(&self, gsi: u32, owner: &'static str) -> Result<IrqLine, IrqError> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner).claim(gsi, owner)?;
        self.connect(gsi).inspect_err(|_| self.0.release(gsi))
    }

    fn connect(&self, gsi: u32) -> Result<IrqLine, IrqError> {
        let fd =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| IrqError::EventFd { gsi, source })?;
        self.0.vm.attach_irqfd(gsi, &fd).map_err(|source| IrqError::Attach { gsi, source })?;
        Ok(IrqLine::new(Arc::clone(&self.0), gsi, IrqTrigger::new(fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeCall, FakeVm};

    #[test]
    fn a_line_is_connected_and_disconnected_by_its_lifetime() {
        let vm = Arc::new(FakeVm::default());
        let router = IrqRouter::new(vm.clone());
        drop(router.edge_line(4, "serial").unwrap());
        assert_eq!(vm.calls(), [FakeCall::AttachIrqfd(4), FakeCall::DetachIrqfd(4)]);
        drop(router.edge_line(4, "serial again").unwrap());
    }

    #[test]
    fn a_refused_irqfd_leaves_the_gsi_free() {
        let vm = Arc::new(FakeVm::default());
        vm.fail_call(0, libc::EBUSY);
        let router = IrqRouter::new(vm.clone());
        assert!(matches!(router.edge_line(4, "serial"), Err(IrqError::Attach { gsi: 4, .. })));
        router.edge_line(4, "serial").unwrap();
    }

    #[test]
    fn a_trigger_signals_the_connected_eventfd_and_outlives_the_line() {
        let router = IrqRouter::new(Arc::new(FakeVm::default()));
        let line = router.edge_line(4, "serial").unwrap();
        let trigger = line.trigger();
        trigger.trigger();
        trigger.trigger();
        assert_eq!(trigger.signals(), 2);
        drop(line);
        trigger.trigger();
    }
}
