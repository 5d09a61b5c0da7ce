//! `MsiVector`: a message-signalled interrupt with mask and pending bit.
//!
//! Who triggers it decides what a mask is. User space looks at the mask before it signals, so that masking is a store and
//! unmasking a store and a look at the pending bit. The kernel (vhost, VFIO) looks at nothing: masking takes the irqfd away,
//! so that signals wait in the eventfd's counter, which then is the pending bit, and unmasking brings it back, whereupon KVM
//! delivers what waits.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;

use super::line::{eventfd, signal};
use super::mask::MaskState;
use super::router::{IrqError, Shared};
use super::{IrqTrigger, MsiMessage};
use crate::LogLimit;
use crate::seam::InterruptVm;
use crate::sync::{Mutex, lock};

/// Who triggers a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggeredBy {
    /// A thread of this program, with [`IrqTrigger::trigger`].
    UserSpace,
    /// vhost or VFIO, with the vector's [`eventfd`](MsiVector::eventfd).
    Kernel,
}

/// What triggers share with the vector.
pub(super) struct Vector {
    mask: MaskState,
    delivery: Delivery,
}

enum Delivery {
    /// An irqfd that stays attached.
    Attached(EventFd),
    /// An irqfd that is attached while the vector is not masked.
    WhileOpen(EventFd),
    /// `KVM_SIGNAL_MSI`, where KVM has no irqfd.
    Ioctl { vm: Arc<dyn InterruptVm>, message: ArcSwapOption<MsiMessage>, losses: Arc<LogLimit> },
}

impl Vector {
    pub(super) fn trigger(&self) {
        match &self.delivery {
            Delivery::WhileOpen(fd) => signal(fd),
            Delivery::Attached(_) | Delivery::Ioctl { .. } => self.mask.trigger(|| self.inject()),
        }
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn eventfd(&self) -> Option<&EventFd> {
        match &self.delivery {
            Delivery::Attached(fd) | Delivery::WhileOpen(fd) => Some(fd),
            Delivery::Ioctl { .. } => None,
        }
    }

    fn inject(&self) {
        match &self.delivery {
            Delivery::Attached(fd) | Delivery::WhileOpen(fd) => signal(fd),
            Delivery::Ioctl { vm, message, losses } => {
                let message = message.load();
                // The address is the guest's: it may be none that KVM delivers to.
                if let Some(Err(error)) = message.as_deref().map(|message| vm.signal_message(*message))
                    && let Some(left_out) = losses.permit()
                {
                    tracing::error!(%error, left_out, "an interrupt is lost");
                }
            }
        }
    }

    /// Where the vector leads, now that the routes say so.
    pub(super) fn follow(&self, new: Option<MsiMessage>) {
        if let Delivery::Ioctl { message, .. } = &self.delivery {
            message.store(new.map(Arc::new));
        }
    }
}

/// A message-signalled interrupt, masked and leading nowhere when it is made. Dropped, it is disconnected, and its route and
/// its GSI are free again.
pub struct MsiVector {
    shared: Arc<Shared>,
    gsi: u32,
    vector: Arc<Vector>,
    /// Held while the vector is masked, unmasked or given a message, over the ioctl for that; comes before the router's lock.
    /// Triggers do not take it.
    control: Mutex<()>,
}

impl MsiVector {
    /// Connects `gsi`, which the caller has allocated. On an error it stays allocated.
    pub(super) fn connect(shared: Arc<Shared>, gsi: u32, by: TriggeredBy) -> Result<Self, IrqError> {
        let delivery = match by {
            TriggeredBy::UserSpace if !shared.options.irqfd => {
                let (vm, losses) = (Arc::clone(&shared.vm), Arc::clone(&shared.losses));
                Delivery::Ioctl { vm, message: ArcSwapOption::empty(), losses }
            }
            TriggeredBy::UserSpace => {
                let fd = eventfd(gsi)?;
                shared.vm.attach_irqfd(gsi, &fd).map_err(|source| IrqError::Attach { gsi, source })?;
                Delivery::Attached(fd)
            }
            TriggeredBy::Kernel if !shared.options.irqfd => return Err(IrqError::NoIrqfd),
            TriggeredBy::Kernel => Delivery::WhileOpen(eventfd(gsi)?),
        };
        let vector = Arc::new(Vector { mask: MaskState::masked(), delivery });
        Ok(Self { shared, gsi, vector, control: Mutex::new(()) })
    }

    /// A handle that triggers this vector.
    #[must_use]
    pub fn trigger(&self) -> IrqTrigger {
        IrqTrigger::vector(Arc::clone(&self.vector))
    }

    /// What the kernel is to signal, for a vector that it triggers.
    #[must_use]
    pub fn eventfd(&self) -> Option<&EventFd> {
        match &self.vector.delivery {
            Delivery::WhileOpen(fd) => Some(fd),
            Delivery::Attached(_) | Delivery::Ioctl { .. } => None,
        }
    }

    /// Lets the vector lead to `message`. One ioctl, or none if it does so already.
    ///
    /// # Errors
    /// KVM does not take the route; everything is as it was.
    pub fn set_message(&self, message: MsiMessage) -> Result<(), IrqError> {
        let _control = lock(&self.control);
        self.shared.change(&[(self.gsi, Some(message))])?;
        self.vector.follow(Some(message));
        Ok(())
    }

    /// Masks the vector: a trigger that begins after the return makes it pending. No ioctl for a vector that user space
    /// triggers, one for the kernel's.
    ///
    /// # Errors
    /// KVM does not detach the irqfd; the vector is not masked.
    pub fn mask(&self) -> Result<(), IrqError> {
        let _control = lock(&self.control);
        if self.vector.mask.is_masked() {
            return Ok(());
        }
        if let Delivery::WhileOpen(fd) = &self.vector.delivery {
            let gsi = self.gsi;
            self.shared.vm.detach_irqfd(gsi, fd).map_err(|source| IrqError::Detach { gsi, source })?;
        }
        self.vector.mask.mask();
        Ok(())
    }

    /// Unmasks the vector: what is pending is sent, and so is every trigger that begins after the return. No ioctl for a
    /// vector that user space triggers, one for the kernel's.
    ///
    /// # Errors
    /// KVM does not attach the irqfd; the vector is masked, and what is pending stays so.
    pub fn unmask(&self) -> Result<(), IrqError> {
        let _control = lock(&self.control);
        if !self.vector.mask.is_masked() {
            return Ok(());
        }
        match &self.vector.delivery {
            Delivery::WhileOpen(fd) => {
                // Back into the counter, where KVM looks.
                if self.vector.mask.take_pending() {
                    signal(fd);
                }
                let gsi = self.gsi;
                self.shared.vm.attach_irqfd(gsi, fd).map_err(|source| IrqError::Attach { gsi, source })?;
                self.vector.mask.unmask(|| {});
            }
            Delivery::Attached(_) | Delivery::Ioctl { .. } => {
                self.vector.mask.unmask(|| self.vector.inject());
            }
        }
        Ok(())
    }

    /// The pending bit: a trigger has come while the vector was masked.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        if let Delivery::WhileOpen(fd) = &self.vector.delivery {
            let _control = lock(&self.control);
            if self.vector.mask.is_masked() && fd.read().is_ok() {
                self.vector.mask.set_pending();
            }
        }
        self.vector.mask.is_pending()
    }

    /// Clears the pending bit, as a device must when the cause of the interrupt is gone before the vector is unmasked.
    pub fn clear_pending(&self) {
        if let Delivery::WhileOpen(fd) = &self.vector.delivery {
            let _control = lock(&self.control);
            if self.vector.mask.is_masked() {
                // Empty already is fine.
                let _ = fd.read();
            }
        }
        self.vector.mask.take_pending();
    }

    pub(super) fn gsi(&self) -> u32 {
        self.gsi
    }

    pub(super) fn shared_vector(&self) -> &Vector {
        &self.vector
    }
}

impl Drop for MsiVector {
    /// Waits for what KVM is delivering of this vector, and for nobody else: who triggers it meanwhile goes on.
    fn drop(&mut self) {
        match &self.vector.delivery {
            Delivery::Attached(fd) => self.shared.detach(self.gsi, fd),
            Delivery::WhileOpen(fd) if !self.vector.mask.is_masked() => self.shared.detach(self.gsi, fd),
            Delivery::WhileOpen(_) => {}
            Delivery::Ioctl { .. } => self.vector.follow(None),
        }
        self.shared.release(self.gsi);
    }
}

impl fmt::Debug for MsiVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiVector").field("gsi", &self.gsi).field("mask", &self.vector.mask).finish()
    }
}
