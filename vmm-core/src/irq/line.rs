//! `IrqLine`: a connected edge-triggered line, and the triggers that raise it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::msi::Vector;
use super::router::{IrqError, Shared};
use crate::seam::InterruptVm;

/// An eventfd for interrupt `gsi`.
pub(super) fn eventfd(gsi: u32) -> Result<EventFd, IrqError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| IrqError::EventFd { gsi, source })
}

/// Signals `fd`. The only error of a non-blocking eventfd write of 1 is a counter at its maximum: KVM has 2^64 - 2 signals to
/// take already, one more would tell it nothing.
pub(super) fn signal(fd: &EventFd) {
    let _ = fd.write(1);
}

/// Raises one edge-triggered line or one vector. Clones raise the same.
///
/// One `write` to an eventfd (one ioctl where KVM has no irqfd): no lock, no allocation, from any thread. After the line or
/// the vector is gone a trigger has no effect.
#[derive(Clone)]
pub struct IrqTrigger(Source);

#[derive(Clone)]
enum Source {
    EventFd(Arc<EventFd>),
    Pulse(Arc<Pulse>),
    Vector(Arc<Vector>),
}

/// A line of a host without irqfd.
struct Pulse {
    vm: Arc<dyn InterruptVm>,
    gsi: u32,
    connected: AtomicBool,
}

impl Pulse {
    fn send(&self) {
        if !self.connected.load(Ordering::Acquire) {
            return;
        }
        for high in [true, false] {
            if let Err(error) = self.vm.set_line(self.gsi, high) {
                tracing::error!(gsi = self.gsi, %error, "an interrupt is lost");
            }
        }
    }
}

impl IrqTrigger {
    pub(super) fn vector(vector: Arc<Vector>) -> Self {
        Self(Source::Vector(vector))
    }

    /// Raises it once. KVM may merge triggers that the guest has not yet seen, as hardware does; a masked vector keeps one
    /// pending.
    pub fn trigger(&self) {
        match &self.0 {
            Source::EventFd(fd) => signal(fd),
            Source::Pulse(pulse) => pulse.send(),
            Source::Vector(vector) => vector.trigger(),
        }
    }

    /// How many signals wait in the eventfd, for tests without a kernel that takes them.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn signals(&self) -> u64 {
        let fd = match &self.0 {
            Source::EventFd(fd) => Some(&**fd),
            Source::Pulse(_) => None,
            Source::Vector(vector) => vector.eventfd(),
        };
        fd.and_then(|fd| fd.read().ok()).unwrap_or(0)
    }

    /// A trigger that is connected to nothing, for tests of devices.
    #[cfg(any(test, feature = "test-util"))]
    pub fn unconnected() -> std::io::Result<Self> {
        Ok(Self(Source::EventFd(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))))
    }
}

impl fmt::Debug for IrqTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IrqTrigger")
    }
}

/// An edge-triggered line that belongs to one device: dropped, it is disconnected and its GSI is free again.
pub struct IrqLine {
    shared: Arc<Shared>,
    gsi: u32,
    trigger: IrqTrigger,
}

impl IrqLine {
    /// Connects `gsi`, which the caller has claimed. On an error it stays claimed.
    pub(super) fn connect(shared: Arc<Shared>, gsi: u32) -> Result<Self, IrqError> {
        let source = if shared.options.irqfd {
            let fd = eventfd(gsi)?;
            shared.vm.attach_irqfd(gsi, &fd).map_err(|source| IrqError::Attach { gsi, source })?;
            Source::EventFd(Arc::new(fd))
        } else {
            let vm = Arc::clone(&shared.vm);
            Source::Pulse(Arc::new(Pulse { vm, gsi, connected: AtomicBool::new(true) }))
        };
        Ok(Self { shared, gsi, trigger: IrqTrigger(source) })
    }

    /// A handle that raises this line.
    #[must_use]
    pub fn trigger(&self) -> IrqTrigger {
        self.trigger.clone()
    }
}

impl Drop for IrqLine {
    /// Waits for what KVM is delivering of this line, and for nobody else: a handler that triggers the line meanwhile goes
    /// on.
    fn drop(&mut self) {
        match &self.trigger.0 {
            Source::EventFd(fd) => self.shared.detach(self.gsi, fd),
            Source::Pulse(pulse) => pulse.connected.store(false, Ordering::Release),
            Source::Vector(_) => {}
        }
        self.shared.release(self.gsi);
    }
}
