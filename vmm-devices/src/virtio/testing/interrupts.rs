//! Interrupts that are counted, and can be waited for.

use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::virtio::Interrupts;

/// The interrupts of one device.
pub struct CountedInterrupts {
    /// Blocking: a read waits for an interrupt, and takes all there are.
    queues: EventFd,
    config: EventFd,
    total: AtomicU64,
}

impl CountedInterrupts {
    /// Without an interrupt so far.
    ///
    /// # Panics
    /// The host has no descriptor.
    #[must_use]
    #[expect(clippy::expect_used, clippy::new_without_default, reason = "for tests")]
    pub fn new() -> Self {
        let eventfd = || EventFd::new(EFD_CLOEXEC).expect("a descriptor for a test");
        Self { queues: eventfd(), config: eventfd(), total: AtomicU64::new(0) }
    }

    /// Waits for an interrupt of a queue.
    pub fn wait_for_queue(&self) {
        let _ = self.queues.read();
    }

    /// Waits for an interrupt of the configuration.
    pub fn wait_for_config(&self) {
        let _ = self.config.read();
    }

    /// How many interrupts of queues there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Acquire)
    }
}

impl Interrupts for CountedInterrupts {
    fn queue_used(&self, _index: usize) {
        self.total.fetch_add(1, Ordering::AcqRel);
        let _ = self.queues.write(1);
    }

    fn config_changed(&self) {
        let _ = self.config.write(1);
    }

    fn reset(&self) {}
}
