//! `LevelLine`: a level-triggered line that several devices share.
//!
//! With the in-kernel I/O APIC the line is an irqfd with a resample descriptor: a signal raises it, the guest's end of
//! interrupt lowers it and signals the resample descriptor, and who listens there raises it again while a device still
//! asserts it. KVM raises such a line from a work item, so that the guest may see an interrupt at which no device asserts the
//! line any more: no lock of ours could prevent it. With the split irqchip the pin itself knows (see
//! [`IoapicPins`](super::IoapicPins)), nobody has to listen, and that does not happen. Without irqfd both levels are set by
//! ioctl.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::asserted::Asserted;
use super::line::{eventfd, signal};
use super::router::{IrqError, Shared};
use super::table::Irqchip;

/// How a level reaches the guest.
enum Wire {
    Resampled(Arc<ResampledWire>),
    /// The pin counts who asserts it.
    Pin(Arc<EventFd>),
    Ioctl(Asserted),
}

struct ResampledWire {
    asserted: Asserted,
    fd: EventFd,
    resample: Arc<EventFd>,
}

/// The connected line: gone with its last share.
struct Connected {
    shared: Arc<Shared>,
    gsi: u32,
    wire: Wire,
}

impl Connected {
    fn assert(&self) {
        match &self.wire {
            Wire::Resampled(wire) => {
                if wire.asserted.add() {
                    signal(&wire.fd);
                }
            }
            Wire::Pin(_) => self.shared.pins.assert(self.gsi),
            Wire::Ioctl(asserted) => {
                if asserted.add() {
                    self.drive(asserted);
                }
            }
        }
    }

    fn take_back(&self) {
        match &self.wire {
            Wire::Resampled(wire) => drop(wire.asserted.remove()),
            Wire::Pin(_) => self.shared.pins.take_back(self.gsi),
            Wire::Ioctl(asserted) => {
                if asserted.remove() {
                    self.drive(asserted);
                }
            }
        }
    }

    fn drive(&self, asserted: &Asserted) {
        asserted.drive(|high| {
            if let Err(error) = self.shared.vm.set_line(self.gsi, high) {
                tracing::error!(gsi = self.gsi, high, %error, "cannot set an interrupt line");
            }
        });
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        match &self.wire {
            Wire::Resampled(wire) => self.shared.detach(self.gsi, &wire.fd),
            Wire::Pin(fd) => {
                self.shared.pins.disconnect(self.gsi);
                self.shared.detach(self.gsi, fd);
            }
            Wire::Ioctl(_) => {}
        }
        self.shared.release(self.gsi);
    }
}

/// A level-triggered line. Dropped with all its inputs, it is low and disconnected, and its GSI is free again.
pub struct LevelLine(Arc<Connected>);

impl LevelLine {
    /// Connects `gsi`, which the caller has claimed. On an error it stays claimed.
    pub(super) fn connect(shared: Arc<Shared>, gsi: u32) -> Result<Self, IrqError> {
        let options = &shared.options;
        let attach_error = |source| IrqError::Attach { gsi, source };
        let wire = if options.irqchip == Irqchip::Split {
            let fd = Arc::new(eventfd(gsi)?);
            shared.vm.attach_irqfd(gsi, &fd).map_err(attach_error)?;
            shared.pins.connect(gsi, Arc::clone(&fd));
            Wire::Pin(fd)
        } else if options.irqfd && options.resample {
            let (fd, resample) = (eventfd(gsi)?, Arc::new(eventfd(gsi)?));
            shared.vm.attach_resampled_irqfd(gsi, &fd, &resample).map_err(attach_error)?;
            Wire::Resampled(Arc::new(ResampledWire { asserted: Asserted::none(), fd, resample }))
        } else {
            Wire::Ioctl(Asserted::none())
        };
        Ok(Self(Arc::new(Connected { shared, gsi, wire })))
    }

    /// The share of one device, not asserted.
    #[must_use]
    pub fn input(&self) -> LevelInput {
        LevelInput { line: Arc::clone(&self.0), asserted: AtomicBool::new(false) }
    }

    /// What one thread has to listen to as long as the line is used, or `None` where nobody has to.
    #[must_use]
    pub fn resample(&self) -> Option<Resample> {
        match &self.0.wire {
            Wire::Resampled(wire) => Some(Resample(Arc::clone(wire))),
            Wire::Pin(_) | Wire::Ioctl(_) => None,
        }
    }
}

/// A device's share in a level-triggered line. Dropped, it is taken back.
pub struct LevelInput {
    line: Arc<Connected>,
    asserted: AtomicBool,
}

impl LevelInput {
    /// Asserts the line or takes it back; what is so already stays so. No lock, no allocation, from any thread: at most one
    /// `write` to an eventfd, or an ioctl where KVM has no irqfd.
    pub fn set(&self, asserted: bool) {
        if self.asserted.swap(asserted, Ordering::AcqRel) == asserted {
            return;
        }
        if asserted { self.line.assert() } else { self.line.take_back() }
    }
}

impl Drop for LevelInput {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// The guest's ends of interrupt on a level-triggered line: an eventfd that is signalled, and what to do then. For the epoll
/// loop of a worker.
pub struct Resample(Arc<ResampledWire>);

impl Resample {
    /// What KVM signals at each end of interrupt; non-blocking.
    #[must_use]
    pub fn eventfd(&self) -> Arc<EventFd> {
        Arc::clone(&self.0.resample)
    }

    /// Raises the line again if a device still asserts it. To be called when the eventfd is readable, or was just emptied.
    pub fn handle(&self) {
        // Emptied before the count is read: an end of interrupt after it wakes the listener again. Empty already is fine.
        let _ = self.0.resample.read();
        if self.0.asserted.is_high() {
            signal(&self.0.fd);
        }
    }
}

impl fmt::Debug for LevelLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LevelLine").field(&self.0.gsi).finish()
    }
}

impl fmt::Debug for LevelInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asserted = &self.asserted;
        f.debug_struct("LevelInput").field("gsi", &self.line.gsi).field("asserted", asserted).finish()
    }
}
