//! `Console`: the device that a transport sees, and the port that the host has.

use std::io::Write;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::queue::{RECEIVE, ReceiveQueue, TransmitQueue};
use super::shared::Shared;
use crate::Worker;
use crate::virtio::serve::{QueueWorkers, ServeQueue};
use crate::virtio::{
    ActivateError, Activation, QueueReset, Running, Stopped, VirtioDevice, features, read_config,
};

/// Descriptors of the two queues.
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// VIRTIO_CONSOLE_F_SIZE: the configuration has columns and rows (section 5.3.3).
const SIZE: u64 = 1 << 0;

/// The console device.
pub struct Console {
    worker: Arc<Worker>,
    shared: Arc<Shared>,
}

impl Console {
    /// A device that is served on `worker`. Its output goes to `output`, which must not block. `on_drained` is called on the
    /// worker when input was offered and all of it has been read since; it must be quick.
    #[must_use]
    pub fn new(
        worker: Arc<Worker>,
        output: Box<dyn Write + Send>,
        on_drained: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { worker, shared: Arc::new(Shared::new(output, on_drained)) }
    }

    /// Offers input; returns how many bytes there was room for.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.shared.offer(bytes)
    }

    /// Says how large the terminal is.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.shared.resize(columns, rows);
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        SIZE | features::RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let receive = activation.queues.iter().find(|queue| queue.index == RECEIVE);
        let receive = receive.map(|queue| Arc::clone(&queue.doorbell));
        let status = activation.status.clone();
        let shared = Arc::clone(&self.shared);
        let serve = move |index| -> Box<dyn ServeQueue> {
            if index == RECEIVE {
                Box::new(ReceiveQueue::new(Arc::clone(&shared)))
            } else {
                Box::new(TransmitQueue::new(Arc::clone(&shared)))
            }
        };
        let queues = QueueWorkers::start(&self.worker, activation, serve)?;
        self.shared.start(status, receive);
        Ok(Box::new(RunningConsole { queues, shared: Arc::clone(&self.shared) }))
    }
}

/// A console whose driver is ready: input wakes its queue, and a new size is an interrupt.
struct RunningConsole {
    queues: QueueWorkers,
    shared: Arc<Shared>,
}

impl Running for RunningConsole {
    fn stop(self: Box<Self>, done: Stopped) {
        self.shared.stop();
        Box::new(self.queues).stop(done);
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        self.queues.queue_reset()
    }
}
