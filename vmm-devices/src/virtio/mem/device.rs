//! `Mem`: the device that a transport sees, and what the host asks of it.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};

use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use vmm_memory::{HotplugLayout, HotplugRegion};

use super::counters::MemCounts;
use super::desk::Desk;
use super::queue::RequestQueue;
use super::region::{Region, SizeError};
use crate::sync::lock;
use crate::virtio::ending::Panicked;
use crate::virtio::queue::QueueState;
use crate::virtio::serve::QueueWorkers;
use crate::virtio::{
    ActivateError, Activation, QueueReset, Running, Stopped, VirtioDevice, features, read_config,
};
use crate::{Handler, Progress, Worker};

/// Descriptors of the queue.
const QUEUE_SIZES: [u16; 1] = [64];

/// VIRTIO_MEM_F_ACPI_PXM: `node_id` is a proximity domain; VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: what is not plugged is not accessed
/// (section 5.15.3).
const F_ACPI_PXM: u64 = 1 << 0;
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// What is said about a memory device.
pub struct MemOptions {
    /// The blocks, of which none is plugged.
    pub region: HotplugRegion,
    /// How many bytes the guest is asked to have plugged. Others may have a share of it to read it, also when the device has gone.
    pub requested: Arc<AtomicU64>,
    /// The proximity domain of ACPI to which the memory belongs, where there are some.
    pub node: Option<u16>,
}

/// The memory device.
pub struct Mem {
    worker: Arc<Worker>,
    region: Arc<Region>,
    node: Option<u16>,
}

impl Mem {
    /// A device that is served on `worker`, which serves no other. What `options` requests that is no number of its blocks becomes nothing.
    #[must_use]
    pub fn new(worker: Arc<Worker>, options: MemOptions) -> Self {
        let MemOptions { region, requested, node } = options;
        let region = Region::new(region, requested);
        if region.request(region.requested()).is_err() {
            // There is always the size of no blocks.
            let _ = region.request(0);
        }
        Self { worker, region: Arc::new(region), node }
    }

    /// Asks the guest to have `bytes` plugged, which its driver does in its own time and as far as it can.
    ///
    /// # Errors
    /// [`SizeError`]; nothing is asked for then.
    pub fn request(&self, bytes: u64) -> Result<(), SizeError> {
        self.region.request(bytes)
    }

    /// Its sizes, and what it has done so far.
    #[must_use]
    pub fn counts(&self) -> MemCounts {
        self.region.counts()
    }

    /// Changes nothing any more, and returns when a change that was under way has ended. For the end of the machine, to whose
    /// standstill a change may have to wait. Not to be called inside a read section.
    pub fn end(&self) {
        self.region.end();
    }

    /// The configuration (section 5.15.4). All of the region is usable.
    fn config(&self) -> [u8; 56] {
        let HotplugLayout { range, block_size, .. } = self.region.layout();
        let fields = [
            block_size,
            self.node.unwrap_or_default().into(),
            range.start,
            range.size,
            range.size,
            self.region.plugged(),
            self.region.requested(),
        ];
        let mut bytes = [0; 56];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn features(&self) -> u64 {
        let node = if self.node.is_some() { F_ACPI_PXM } else { 0 };
        node | F_UNPLUGGED_INACCESSIBLE | features::RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let (device, status) = (activation.status.name(), activation.status.clone());
        let refused = |source: std::io::Error| ActivateError { device, source: source.into() };
        let Some(queue) = activation.queues.first() else {
            return Err(refused(std::io::ErrorKind::InvalidInput.into()));
        };
        let desk = Arc::new(Desk::new(Arc::clone(&queue.doorbell)).map_err(refused)?);
        let end = Arc::new(OnceLock::new());
        let changes = {
            let (region, desk, end) = (Arc::clone(&self.region), Arc::clone(&desk), Arc::clone(&end));
            let (bell, status) = (desk.bell(), status.clone());
            let serve = move |_| {
                // Goes with the handler, when no change is being made any more.
                let _end: &OnceLock<AtEnd> = &end;
                desk.serve(|change| region.make(change));
                Progress::Done
            };
            let failed = move || status.set_needs_reset(&Panicked);
            self.worker.watch(device, bell, serve, failed).map_err(|error| refused(error.source))?
        };
        let region = Arc::clone(&self.region);
        let serve = move |_| Box::new(RequestQueue::new(Arc::clone(&region), Arc::clone(&desk))) as _;
        let queues = QueueWorkers::start(&self.worker, activation, serve)?;
        self.region.set_live(Some(status));
        Ok(Box::new(RunningMem { queues, changes, end, region: Arc::clone(&self.region) }))
    }
}

/// A device whose driver is ready.
struct RunningMem {
    queues: QueueWorkers,
    changes: Handler,
    /// Shared with the handler of the changes.
    end: Arc<OnceLock<AtEnd>>,
    region: Arc<Region>,
}

/// Says that the device has stopped when the last share is dropped: that of the queue, and that of the changes.
type AtEnd = Arc<Mutex<Both>>;

struct Both {
    states: Vec<QueueState>,
    done: Option<Stopped>,
}

impl Drop for Both {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(std::mem::take(&mut self.states));
        }
    }
}

impl Running for RunningMem {
    /// A change that is under way comes to its end; one that waits is not made.
    fn stop(self: Box<Self>, done: Stopped) {
        let Self { queues, changes, end, region } = *self;
        region.set_live(None);
        let both = Arc::new(Mutex::new(Both { states: Vec::new(), done: Some(done) }));
        // Nobody else sets it.
        let _ = end.set(Arc::clone(&both));
        changes.retire();
        drop(end);
        Box::new(queues).stop(Box::new(move |states| lock(&both).states = states));
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        self.queues.queue_reset()
    }
}

impl fmt::Debug for Mem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mem").field("layout", &self.region.layout()).finish_non_exhaustive()
    }
}
