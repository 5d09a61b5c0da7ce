//! The interrupt tables of a `FakeVm`: what KVM would have attached and routed.

use std::collections::BTreeMap;

use vmm_sys_util::eventfd::EventFd;

use super::{FakeCall, FakeVm};
use crate::IoctlError;
use crate::irq::MsiMessage;
use crate::seam::{IrqFds, IrqInjection, IrqRoute, IrqRoutes, IrqTarget};

/// An attached irqfd, as the kernel keeps it open.
#[derive(Debug)]
struct Attached {
    fd: EventFd,
    resample: Option<EventFd>,
}

#[derive(Debug, Default)]
pub(super) struct Interrupts {
    irqfds: BTreeMap<u32, Attached>,
    routes: Vec<IrqRoute>,
}

impl FakeVm {
    /// The GSIs that have an irqfd.
    #[must_use]
    pub fn irqfds(&self) -> Vec<u32> {
        self.state().interrupts.irqfds.keys().copied().collect()
    }

    /// The routes to messages.
    #[must_use]
    pub fn routes(&self) -> Vec<(u32, MsiMessage)> {
        let messages = |route: &IrqRoute| match route.target {
            IrqTarget::Message(message) => Some((route.gsi, message)),
            _ => None,
        };
        self.state().interrupts.routes.iter().filter_map(messages).collect()
    }

    /// The message that `gsi` leads to.
    #[must_use]
    pub fn message(&self, gsi: u32) -> Option<MsiMessage> {
        self.routes().into_iter().find(|route| route.0 == gsi).map(|route| route.1)
    }

    /// Takes the signals of the irqfd of `gsi`, as KVM does: how many there were. 0 where none is attached.
    #[must_use]
    pub fn signals(&self, gsi: u32) -> u64 {
        let state = self.state();
        state.interrupts.irqfds.get(&gsi).and_then(|attached| attached.fd.read().ok()).unwrap_or(0)
    }

    /// The guest ends the interrupt of a resampled irqfd.
    pub fn acknowledge(&self, gsi: u32) {
        let state = self.state();
        let resample = state.interrupts.irqfds.get(&gsi).and_then(|attached| attached.resample.as_ref());
        if let Some(resample) = resample {
            // Non-blocking, and read after each write.
            let _ = resample.write(1);
        }
    }

    fn attach(&self, gsi: u32, fd: &EventFd, resample: Option<&EventFd>) -> Result<(), IoctlError> {
        let clone = |fd: &EventFd| fd.try_clone().map_err(|source| IoctlError { ioctl: "KVM_IRQFD", source });
        let attached = Attached { fd: clone(fd)?, resample: resample.map(clone).transpose()? };
        self.state().interrupts.irqfds.insert(gsi, attached);
        Ok(())
    }
}

impl IrqFds for FakeVm {
    fn attach_irqfd(&self, gsi: u32, fd: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IRQFD", FakeCall::AttachIrqfd(gsi))?;
        self.attach(gsi, fd, None)
    }

    fn attach_resampled_irqfd(&self, gsi: u32, fd: &EventFd, resample: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IRQFD", FakeCall::AttachResampledIrqfd(gsi))?;
        self.attach(gsi, fd, Some(resample))
    }

    fn detach_irqfd(&self, gsi: u32, _fd: &EventFd) -> Result<(), IoctlError> {
        self.record("KVM_IRQFD", FakeCall::DetachIrqfd(gsi))?;
        // The kernel takes what waits in the counter.
        let _ = self.signals(gsi);
        self.state().interrupts.irqfds.remove(&gsi);
        Ok(())
    }
}

impl IrqRoutes for FakeVm {
    fn set_routes(&self, routes: &[IrqRoute]) -> Result<(), IoctlError> {
        let messages = routes.iter().filter(|route| matches!(route.target, IrqTarget::Message(_))).count();
        self.record("KVM_SET_GSI_ROUTING", FakeCall::SetRoutes(messages))?;
        self.state().interrupts.routes = routes.to_vec();
        Ok(())
    }
}

impl IrqInjection for FakeVm {
    fn set_line(&self, gsi: u32, high: bool) -> Result<(), IoctlError> {
        self.record("KVM_IRQ_LINE", FakeCall::SetLine(gsi, high))
    }

    fn signal_message(&self, message: MsiMessage) -> Result<(), IoctlError> {
        self.record("KVM_SIGNAL_MSI", FakeCall::SignalMessage(message))
    }

    /// Every pin is masked.
    fn ioapic_pin_masked(&self, _pin: u32) -> Result<bool, IoctlError> {
        Ok(true)
    }
}
