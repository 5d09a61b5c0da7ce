//! `Block`: a block device (virtio 1.3, section 5.2): its features, its configuration, and the queues it is served by.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_core::{LogLimit, VmEvents};
use vmm_memory::MemoryReader;

use super::SECTOR;
use super::calls::DISK;
use super::control::Control;
use super::counters::{BlockCounts, Counters};
use super::engine::{Engine, Operation};
use super::gone;
use super::image::{Blocks, Image};
use super::pool::Pool;
use super::queue::{BlockQueue, Parts};
use super::request::{ID_LENGTH, MAX_RANGE_SECTORS};
use super::storage::Storage;
use super::uring::Uring;
use crate::rate_limiter::Limits;
use crate::sync::lock;
use crate::virtio::ending::AllStopped;
use crate::virtio::throttle::Throttle;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, DeviceStatus, QueueReset, QueueStopped, Running, Stopped,
    VirtioDevice, features, read_config,
};
use crate::{Worker, WorkerError};

/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;

/// Bytes of the configuration, and the place of the cache mode in it (section 5.2.4).
const CONFIG_LENGTH: usize = 60;
const WRITEBACK: usize = 32;

/// How requests reach the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where there is one and the storage is a plain file or block device, else threads.
    #[default]
    Auto,
    /// io_uring, or nothing.
    Uring,
    /// Threads.
    Threads,
}

/// What is behind a disk.
#[derive(Clone)]
pub enum Backend {
    /// An image in raw format.
    Raw(Arc<Image>),
    /// Another format.
    Other(Arc<dyn Storage>),
}

/// What is said about a disk beside its image.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// What messages call it; the first bytes are the identification that the guest can ask for.
    pub name: String,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Number of queues, at least one.
    pub queues: u16,
    /// How requests reach the host.
    pub engine: EngineChoice,
    /// What may pass. Of the disk, not of the device: who makes the device again, hands it on.
    pub throttle: Arc<Throttle>,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Its storage cannot say how large it is.
    #[error("cannot look at the size of the disk {name}")]
    Length {
        /// The disk.
        name: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// io_uring was asked for, and the host has none.
    #[error("the disk {name} cannot use io_uring on this host")]
    NoUring {
        /// The disk.
        name: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// io_uring was asked for, and the format needs threads.
    #[error("the disk {name} has a format that io_uring cannot serve")]
    NotRaw {
        /// The disk.
        name: String,
    },
    /// Its thread.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Dropped by the last who has it, it tells somebody.
pub(super) struct Told(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Told {
    fn new(done: impl FnOnce() + Send + 'static) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Box::new(done)))))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let done = lock(&self.0).take();
        if let Some(done) = done {
            done();
        }
    }
}

/// What the queues share.
///
/// Lock order: `resizing`, in it `status` or `controls`; each of the others alone. Whoever finds `resizing` taken goes away.
pub(super) struct Shared {
    options: BlockOptions,
    /// Absent once it was lost.
    backend: Mutex<Option<Backend>>,
    lost: AtomicBool,
    blocks: Blocks,
    /// Whether the engine is io_uring.
    uring: bool,
    /// In sectors.
    pub(super) capacity: AtomicU64,
    /// The capacity has changed while no driver was ready.
    pub(super) untold: AtomicBool,
    /// Held by who changes the size, never waited for.
    pub(super) resizing: Mutex<()>,
    writeback: AtomicBool,
    /// The queue that has taken the last turn of the worker.
    pub(super) last_turn: AtomicUsize,
    pub(super) counters: Counters,
    failures: LogLimit,
    running: Mutex<Vec<(usize, Arc<Control>)>>,
    /// Of all queues that have not ended, those that are stopping too.
    pub(super) controls: Mutex<Vec<Weak<Control>>>,
    /// Of a driver that is ready. Locked while the capacity changes, so that none becomes ready beside it.
    pub(super) status: Mutex<Option<DeviceStatus>>,
}

/// A disk. It has a thread of its own, so that a slow one stalls nothing but itself.
pub struct Block {
    pub(super) shared: Arc<Shared>,
    worker: Arc<Worker>,
    sizes: Vec<u16>,
}

impl Block {
    /// A disk with the contents of `backend`.
    ///
    /// # Errors
    /// [`BlockError`]: the host does not give what it takes.
    pub fn new(backend: Backend, options: BlockOptions, events: VmEvents) -> Result<Self, BlockError> {
        let image = match &backend {
            Backend::Raw(image) => Some(image),
            Backend::Other(_) => None,
        };
        let uring = choose(&options, image.map(|image| || Uring::new(Arc::clone(image), 1)))?;
        let length = backend.storage().length();
        let length = length.map_err(|source| BlockError::Length { name: options.name.clone(), source })?;
        let sector = u32::try_from(SECTOR).unwrap_or(u32::MAX);
        let plain = Blocks { logical: sector, physical: sector };
        let blocks = image.map_or(plain, |image| image.blocks());
        let worker = Arc::new(Worker::spawn(&DISK, events)?);
        let sizes = vec![QUEUE_SIZE; usize::from(options.queues.max(1))];
        let shared = Shared {
            options,
            backend: Mutex::new(Some(backend)),
            lost: AtomicBool::new(false),
            blocks,
            uring,
            capacity: AtomicU64::new(length / SECTOR),
            untold: AtomicBool::new(false),
            resizing: Mutex::default(),
            writeback: AtomicBool::new(true),
            last_turn: AtomicUsize::new(0),
            counters: Counters::default(),
            failures: LogLimit::default(),
            running: Mutex::default(),
            controls: Mutex::default(),
            status: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), worker, sizes })
    }

    /// Whether requests reach the host by io_uring.
    #[must_use]
    pub fn uses_uring(&self) -> bool {
        self.shared.uring
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> BlockCounts {
        self.shared.counters.counts()
    }

    /// Other limits from now on, for what waits too: what `change` makes of those of before. Returns what they are.
    pub fn change_limits(&self, change: impl FnOnce(Limits) -> Limits) -> Limits {
        self.shared.throttle().change(change)
    }

    /// Takes the storage away from a guest that has the disk: every request fails from now on, and those under way come to their
    /// end. Then nothing here has the storage any more, and `done` is called, on any thread.
    pub fn lose_storage(&self, done: impl FnOnce() + Send + 'static) {
        let told = Told::new(done);
        self.shared.lost.store(true, Ordering::Release);
        let backend = lock(&self.shared.backend).take();
        let controls: Vec<Arc<Control>> =
            lock(&self.shared.controls).iter().filter_map(Weak::upgrade).collect();
        controls.iter().for_each(|control| control.lose(Arc::clone(&told)));
        drop((controls, backend));
    }
}

/// Whether the engine is io_uring; `probe` tries it, if the storage is one that it can serve.
pub(super) fn choose<T>(
    options: &BlockOptions,
    probe: Option<impl FnOnce() -> io::Result<T>>,
) -> Result<bool, BlockError> {
    let name = || options.name.clone();
    let probed = match (options.engine, probe) {
        (EngineChoice::Threads, _) | (EngineChoice::Auto, None) => return Ok(false),
        (EngineChoice::Uring, None) => return Err(BlockError::NotRaw { name: name() }),
        (EngineChoice::Auto | EngineChoice::Uring, Some(probe)) => probe(),
    };
    match probed {
        Ok(_) => Ok(true),
        Err(source) if options.engine == EngineChoice::Uring => {
            Err(BlockError::NoUring { name: name(), source })
        }
        Err(error) => {
            tracing::info!(disk = options.name, %error, "no io_uring: the disk is served by threads");
            Ok(false)
        }
    }
}

impl Backend {
    pub(super) fn storage(&self) -> Arc<dyn Storage> {
        match self {
            Self::Raw(image) => Arc::clone(image) as Arc<dyn Storage>,
            Self::Other(storage) => Arc::clone(storage),
        }
    }
}

impl Shared {
    pub(super) fn name(&self) -> &str {
        &self.options.name
    }

    /// What is behind the disk, unless that was lost.
    pub(super) fn backend(&self) -> io::Result<Backend> {
        lock(&self.backend).clone().ok_or_else(gone::error)
    }

    /// In sectors.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Whether the storage was taken away.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn is_writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    /// The identification: the name, cut or filled up with zeros (section 5.2.6).
    pub(super) fn id(&self) -> [u8; ID_LENGTH] {
        let mut id = [0; ID_LENGTH];
        for (place, byte) in id.iter_mut().zip(self.name().bytes()) {
            *place = byte;
        }
        id
    }

    pub(super) fn throttle(&self) -> &Throttle {
        &self.options.throttle
    }

    /// Says in the log, not too often, that the host has failed a request.
    pub(super) fn report(&self, operation: Operation, error: &io::Error) {
        if let Some(left_out) = self.failures.permit() {
            tracing::warn!(disk = self.name(), ?operation, %error, left_out, "the host has failed a request");
        }
    }

    /// What serves `depth` requests at a time.
    pub(super) fn engine(&self, depth: u16) -> io::Result<Box<dyn Engine>> {
        let (backend, calls) = (self.backend()?, &self.counters.calls);
        Ok(match &backend {
            Backend::Raw(image) if self.uring => {
                Box::new(Uring::new(Arc::clone(image), depth)?.counting(calls))
            }
            backend => Box::new(Pool::new(backend.storage(), calls)?),
        })
    }

    fn features(&self) -> u64 {
        let mut bits =
            vec![VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_MQ];
        if self.is_read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE]);
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.iter().fold(features::RING_RESET, |bits, bit| bits | 1 << bit)
    }

    /// `struct virtio_blk_config` (section 5.2.4).
    fn config(&self) -> [u8; CONFIG_LENGTH] {
        let sector = u32::try_from(SECTOR).unwrap_or(u32::MAX);
        let Blocks { logical, physical } = self.blocks;
        let exponent = physical.checked_div(logical).and_then(u32::checked_ilog2).unwrap_or(0);
        let fields: [(usize, &[u8]); 12] = [
            (0, &self.capacity().to_le_bytes()),
            // seg_max: all descriptors of a queue but those of the header and the status.
            (12, &u32::from(QUEUE_SIZE).saturating_sub(2).to_le_bytes()),
            (20, &logical.to_le_bytes()),
            // physical_block_exp, a byte; min_io_size.
            (24, &exponent.to_le_bytes()),
            (26, &1_u16.to_le_bytes()),
            (WRITEBACK, &[u8::from(self.is_writeback())]),
            (34, &self.options.queues.to_le_bytes()),
            // Of discard, and then of write zeroes: the most sectors, one range a request.
            (36, &MAX_RANGE_SECTORS.to_le_bytes()),
            (40, &1_u32.to_le_bytes()),
            (44, &logical.checked_div(sector).unwrap_or(1).to_le_bytes()),
            (48, &MAX_RANGE_SECTORS.to_le_bytes()),
            // One range, and it may be unmapped.
            (52, &[1, 0, 0, 0, 1]),
        ];
        let mut config = [0; CONFIG_LENGTH];
        for (offset, bytes) in fields {
            config.iter_mut().skip(offset).zip(bytes).for_each(|(place, byte)| *place = *byte);
        }
        config
    }

    /// Sets the cache mode (section 5.2.5.1). What was written before, and not made durable, is made so: the driver will not
    /// ask for that any more.
    fn set_writeback(&self, writeback: bool) {
        if self.writeback.swap(writeback, Ordering::AcqRel)
            && !writeback
            && let Some((_, control)) = lock(&self.running).first()
        {
            control.flush();
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.shared.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // Whether the toggle was negotiated is known once the device runs; before that, the start sets the mode.
        if let ([mode], true) = (data, offset == WRITEBACK as u64)
            && !self.shared.is_read_only()
        {
            self.shared.set_writeback(*mode != 0);
        }
    }

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let Activation { features, memory, queues, status } = activation;
        // Without the toggle: as section 5.2.6.2 has it, writeback if the driver can flush. One that cannot has no use for the
        // toggle: it gets each write back when it is durable.
        let accepted = |bit: u32| features & (1 << bit) != 0;
        let flushes = accepted(VIRTIO_BLK_F_FLUSH);
        if !flushes || !accepted(VIRTIO_BLK_F_CONFIG_WCE) {
            self.shared.writeback.store(flushes, Ordering::Release);
        }
        {
            let mut ready = lock(&self.shared.status);
            *ready = Some(status.clone());
            if self.shared.untold.swap(false, Ordering::AcqRel) {
                status.config_changed();
            }
        }
        let shared = Arc::clone(&self.shared);
        let mut running = RunningBlock { shared, worker: Arc::clone(&self.worker), memory, status, features };
        for queue in queues {
            if let Err(error) = running.start_queue(queue) {
                // Those before it may have requests in flight, whose end cannot be waited for here: the reset does.
                running.status.set_needs_reset(&error);
                break;
            }
        }
        Ok(Box::new(running))
    }
}

/// A disk that serves its queues.
struct RunningBlock {
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    memory: MemoryReader,
    status: DeviceStatus,
    features: u64,
}

impl RunningBlock {
    /// Those that run, which nobody knows any more.
    fn take_running(&self) -> Vec<(usize, Arc<Control>)> {
        std::mem::take(&mut *lock(&self.shared.running))
    }
}

impl Running for RunningBlock {
    fn stop(self: Box<Self>, done: Stopped) {
        *lock(&self.shared.status) = None;
        let all = AllStopped::new(done);
        for (_, control) in self.take_running() {
            control.stop(all.one());
        }
        // The cache mode of a device that was reset.
        self.shared.writeback.store(true, Ordering::Release);
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }
}

impl QueueReset for RunningBlock {
    fn stop_queue(&mut self, index: usize, done: QueueStopped) -> bool {
        let mut running = lock(&self.shared.running);
        let at = running.iter().position(|(running, _)| *running == index);
        let control = at.map(|at| running.swap_remove(at).1);
        drop(running);
        if let Some(control) = &control {
            control.stop(done);
        }
        control.is_some()
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let parts = Parts {
            device: Arc::clone(&self.shared),
            memory: self.memory.clone(),
            status: self.status.clone(),
            features: self.features,
        };
        let index = queue.index;
        let failed = |source: io::Error| ActivateError { device: self.status.name(), source: source.into() };
        let control = Control::new().map_err(failed)?;
        // Before its first turn, in which it may take requests that a change of the size has to wait for.
        {
            let mut controls = lock(&self.shared.controls);
            controls.retain(|control| control.strong_count() != 0);
            controls.push(Arc::downgrade(&control));
        }
        BlockQueue::start(&self.worker, parts, queue, &control).map_err(failed)?;
        lock(&self.shared.running).push((index, control));
        Ok(())
    }
}

impl Drop for RunningBlock {
    /// Stopped, it has no queue left.
    fn drop(&mut self) {
        for (_, control) in self.take_running() {
            control.remove();
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("name", &self.shared.name()).finish_non_exhaustive()
    }
}
