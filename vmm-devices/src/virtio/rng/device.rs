//! `Rng`: the device that a transport sees.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::queue::RequestQueue;
use crate::Worker;
use crate::virtio::serve::QueueWorkers;
use crate::virtio::{ActivateError, Activation, Running, VirtioDevice, features};

/// Descriptors of the queue.
const QUEUE_SIZES: [u16; 1] = [256];

/// The entropy device.
pub struct Rng {
    worker: Arc<Worker>,
}

impl Rng {
    /// A device that is served on `worker`.
    #[must_use]
    pub fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        features::RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let serve = |_index| Box::new(RequestQueue::new()) as _;
        Ok(Box::new(QueueWorkers::start(&self.worker, activation, serve)?))
    }
}
