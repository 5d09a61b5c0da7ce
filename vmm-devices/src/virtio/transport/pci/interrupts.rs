//! `PciInterrupts`: which vector says what, and the ISR status of a driver that has MSI-X off (virtio 1.3, sections 4.1.4.5
//! and 4.1.5.1.2).

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::pci::Msix;
use crate::virtio::Interrupts;

/// No vector says it.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// In the ISR status.
const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

/// The interrupts of one device. A vector that changes while it is triggered is the old or the new one.
pub(super) struct PciInterrupts {
    msix: Msix,
    status: AtomicU8,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
}

impl PciInterrupts {
    /// For `queues` queues, no vector assigned.
    pub(super) fn new(msix: Msix, queues: usize) -> Self {
        let queues = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        Self { msix, status: AtomicU8::new(0), config: AtomicU16::new(NO_VECTOR), queues }
    }

    /// The function's registers for them.
    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// The driver reads the ISR status, which clears it.
    pub(super) fn take_status(&self) -> u8 {
        self.status.swap(0, Ordering::AcqRel)
    }

    /// The vector that says that the configuration has changed.
    pub(super) fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Relaxed)
    }

    /// Assigns it; a vector that is not there is none.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::Relaxed);
    }

    /// The vector that says that buffers of a queue were used.
    pub(super) fn queue_vector(&self, index: u32) -> u16 {
        self.queue(index).map_or(NO_VECTOR, |queue| queue.load(Ordering::Relaxed))
    }

    /// Assigns it; a vector that is not there is none, and of a queue that is not there nothing is assigned.
    pub(super) fn set_queue_vector(&self, index: u32, vector: u16) {
        if let Some(queue) = self.queue(index) {
            queue.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    fn queue(&self, index: u32) -> Option<&AtomicU16> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    fn raise(&self, vector: &AtomicU16, cause: u8) {
        if !self.msix.trigger(vector.load(Ordering::Relaxed)) {
            self.status.fetch_or(cause, Ordering::AcqRel);
        }
    }
}

impl Interrupts for PciInterrupts {
    fn queue_used(&self, index: usize) {
        if let Some(queue) = self.queues.get(index) {
            self.raise(queue, QUEUE);
        }
    }

    fn queue_eventfd(&self, index: usize) -> Option<EventFd> {
        self.msix.eventfd(self.queues.get(index)?.load(Ordering::Relaxed))
    }

    fn config_changed(&self) {
        self.raise(&self.config, CONFIG);
    }

    fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.status.store(0, Ordering::Release);
        self.msix.clear_pending();
    }
}
