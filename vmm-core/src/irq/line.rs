//! `IrqLine`: a connected interrupt line, and the triggers that raise it.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::router::Shared;

/// Raises one interrupt line. Clones raise the same line.
///
/// One `write` to an eventfd: no lock, no allocation, from any thread. After the line is gone a trigger has no effect.
#[derive(Clone, Debug)]
pub struct IrqTrigger(Arc<EventFd>);

impl IrqTrigger {
    pub(super) fn new(fd: EventFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Raises the line once. KVM may merge triggers that the guest has not yet seen, as hardware does.
    pub fn trigger(&self) {
        // The only error of a non-blocking eventfd write of 1 is a counter at its maximum: KVM has 2^64 - 2 signals
        // to take already, one more would tell it nothing.
        let _ = self.0.write(1);
    }

    pub(super) fn eventfd(&self) -> &EventFd {
        &self.0
    }

    /// How many signals wait in the eventfd, for tests without a kernel that takes them.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn signals(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }

    /// A trigger that is connected to nothing, for tests of devices.
    #[cfg(any(test, feature = "test-util"))]
    pub fn unconnected() -> std::io::Result<Self> {
        use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};
        Ok(Self::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))
    }
}

/// A line that belongs to one device: dropped, it is disconnected and its GSI is free again.
pub struct IrqLine {
    shared: Arc<Shared>,
    gsi: u32,
    trigger: IrqTrigger,
}

impl IrqLine {
    pub(super) fn new(shared: Arc<Shared>, gsi: u32, trigger: IrqTrigger) -> Self {
        Self { shared, gsi, trigger }
    }

    /// A handle that raises this line.
    #[must_use]
    pub fn trigger(&self) -> IrqTrigger {
        self.trigger.clone()
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        if let Err(error) = self.shared.vm.detach_irqfd(self.gsi, self.trigger.eventfd()) {
            tracing::error!(gsi = self.gsi, %error, "cannot disconnect an interrupt line");
        }
        self.shared.release(self.gsi);
    }
}
