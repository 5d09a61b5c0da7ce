//! `Started`: a device that was started without a transport.

use std::sync::Arc;
use std::sync::mpsc::channel;

use vmm_memory::{AddressSpace, MemoryReader};

use super::{CountedInterrupts, Driver, Used};
use crate::Doorbell;
use crate::virtio::queue::QueueState;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, DeviceStatus, QueueInterrupt, Running, VirtioDevice,
};

/// A running device and what its driver has of it.
pub struct Started {
    /// The device.
    pub running: Box<dyn Running>,
    /// The doorbells, in the order of the drivers.
    pub doorbells: Vec<Doorbell>,
    /// The interrupts.
    pub interrupts: Arc<CountedInterrupts>,
    /// What the device says about itself.
    pub status: DeviceStatus,
}

impl Started {
    /// Starts `device` with the queues of `drivers` and these features.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// The host has no descriptor.
    #[expect(clippy::expect_used, reason = "for tests")]
    pub fn new(
        device: &dyn VirtioDevice,
        memory: &Arc<AddressSpace>,
        drivers: &[&Driver],
        features: u64,
    ) -> Result<Self, ActivateError> {
        let interrupts = Arc::new(CountedInterrupts::new());
        let status = DeviceStatus::new("test", Arc::clone(&interrupts) as _);
        let doorbells: Vec<_> =
            drivers.iter().map(|_| Doorbell::new(None, 0).expect("a descriptor for a test")).collect();
        let queues = drivers.iter().zip(&doorbells).map(|(driver, doorbell)| {
            let index = driver.setup().index;
            let interrupt = QueueInterrupt::new(Arc::clone(&interrupts) as _, index);
            ActiveQueue { index, queue: driver.queue(features), doorbell: doorbell.eventfd(), interrupt }
        });
        let activation = Activation {
            features,
            memory: MemoryReader::new(Arc::clone(memory)),
            queues: queues.collect(),
            status: status.clone(),
        };
        Ok(Self { running: device.start(activation)?, doorbells, interrupts, status })
    }

    /// Whether the device says that it needs a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.status.needs_reset()
    }

    /// The next `count` chains that the device uses, of the queue of `driver`. Waits for interrupts.
    pub fn wait_used(&self, driver: &mut Driver, count: usize) -> Vec<Used> {
        let mut used = Vec::new();
        while used.len() < count {
            match driver.take_used() {
                Some(element) => used.push(element),
                None if driver.ask_for_interrupt() => {}
                None => self.interrupts.wait_for_queue(),
            }
        }
        used
    }

    /// Stops the device, waits for its answer, and returns the states of its queues.
    ///
    /// # Panics
    /// The device has gone without an answer.
    #[must_use]
    #[expect(clippy::expect_used, reason = "for tests")]
    pub fn stop(self) -> Vec<QueueState> {
        let (sender, stopped) = channel();
        // A test that has ended does not wait for it.
        self.running.stop(Box::new(move |states| drop(sender.send(states))));
        stopped.recv().expect("an answer of the device")
    }
}
