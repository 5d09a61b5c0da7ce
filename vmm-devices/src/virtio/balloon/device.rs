//! `Balloon`: the device that a transport sees, and what the host does with it.

use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_memory::{GuestMemory, RamRange};

use super::PAGE;
use super::config::{ALWAYS, DEFLATE_ON_OOM, MUST_TELL_HOST, PAGE_POISON, PAGE_REPORTING, Role, Roles};
use super::counters::BalloonCounts;
use super::give_back::Giver;
use super::hint_queue::HintQueue;
use super::pages::{Direction, PageQueue};
use super::report::ReportQueue;
use super::shared::{BalloonError, BalloonSettings, BalloonStatus, Shared};
use super::statistics::StatisticsQueue;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::serve::{Batch, QueueWorkers, ServeQueue};
use crate::virtio::{ActivateError, Activation, QueueReset, Running, Stopped, VirtioDevice, read_config};
use crate::{Timer, Worker};

/// Descriptors of the queues: inflate, deflate, statistics, hints, reports. Linux reports 32 ranges at a time, and hints at as many
/// as there is room for.
const QUEUE_SIZES: [u16; 5] = [128, 128, 16, 256, 128];

/// What is said about a balloon.
#[derive(Debug)]
pub struct BalloonOptions {
    /// What the host sets.
    pub settings: Arc<BalloonSettings>,
    /// The guest may take its memory back when it has none left.
    pub deflate_on_oom: bool,
    /// The guest is to say which of its pages are free.
    pub free_page_reporting: bool,
    /// Some of the host's pages behind guest RAM are larger than [`PAGE`]: the driver is then to tell before it uses pages again, so that
    /// those can be given back whose parts come one after the other.
    pub large_pages: bool,
    /// Guest RAM in bytes: no balloon is larger.
    pub most: u64,
}

/// The balloon.
pub struct Balloon {
    worker: Arc<Worker>,
    deflate_on_oom: bool,
    free_page_reporting: bool,
    large_pages: bool,
    most: u64,
    shared: Arc<Shared>,
}

impl Balloon {
    /// A device that is served on `worker`, which waits for the host when that takes memory back.
    #[must_use]
    pub fn new(worker: Arc<Worker>, options: BalloonOptions) -> Self {
        let BalloonOptions { settings, deflate_on_oom, free_page_reporting, large_pages, most } = options;
        let shared = Arc::new(Shared::new(settings));
        Self { worker, deflate_on_oom, free_page_reporting, large_pages, most, shared }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> BalloonCounts {
        self.shared.counters().counts()
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> BalloonStatus {
        self.shared.status()
    }

    /// Has the balloon become as large as that, in the driver's own time. It stays wanted if there is no driver yet.
    ///
    /// # Errors
    /// [`BalloonError::TooLarge`], [`BalloonError::NotPages`].
    pub fn set_target(&self, bytes: u64) -> Result<(), BalloonError> {
        if bytes > self.most {
            return Err(BalloonError::TooLarge { bytes, most: self.most });
        }
        if !bytes.is_multiple_of(PAGE) {
            return Err(BalloonError::NotPages { bytes });
        }
        self.shared.set_target(bytes);
        Ok(())
    }

    /// Asks for statistics so often from now on; of zero, not any more.
    pub fn set_statistics_interval(&self, interval: Duration) {
        self.shared.set_statistics_interval(interval);
    }

    /// Asks the driver to name the pages that are free, and to hold them until [`stop_hinting`](Self::stop_hinting). What was named in
    /// a round before is forgotten.
    ///
    /// # Errors
    /// [`BalloonError::NoDriver`], [`BalloonError::NoHints`].
    pub fn start_hinting(&self) -> Result<(), BalloonError> {
        self.shared.begin_hints()
    }

    /// Lets the driver have its pages again, and forgets what was named.
    pub fn stop_hinting(&self) {
        self.shared.end_hints();
    }

    /// What the driver has named in this round, by address. It may have written to it since: only with all that was written since the
    /// round began it is known what of it is free.
    #[must_use]
    pub fn hinted(&self) -> Vec<RamRange> {
        self.shared.hinted()
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        let chosen = [
            (self.deflate_on_oom, DEFLATE_ON_OOM),
            (self.free_page_reporting, PAGE_REPORTING),
            (self.large_pages, MUST_TELL_HOST),
        ];
        chosen.into_iter().filter(|(offered, _)| *offered).fold(ALWAYS, |all, (_, feature)| all | feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        let [sizes @ .., _] = &QUEUE_SIZES;
        if self.free_page_reporting { &QUEUE_SIZES } else { sizes }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config().bytes(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.shared.write_config(offset, data);
    }

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let (features, device) = (activation.features, activation.status.name());
        let roles = Roles::new(features, activation.queues.iter().map(|queue| queue.index));
        let timer = Timer::new().map_err(|source| ActivateError { device, source: source.into() })?;
        let timer = Arc::new(timer);
        let giver = Giver::new(Arc::clone(self.shared.counters()), features & MUST_TELL_HOST != 0);
        let giver = Arc::new(giver);
        let statistics = activation.queues.iter().find(|queue| roles.of(queue.index) == Role::Statistics);
        let statistics = statistics.map(|queue| Arc::clone(&queue.doorbell));
        // Before the first statistics come.
        self.shared.start(activation.status.clone(), features, statistics);
        let shared = Arc::clone(&self.shared);
        let serve = move |index| -> Box<dyn ServeQueue> {
            match roles.of(index) {
                Role::Inflate => Box::new(PageQueue::new(Direction::Inflate, Arc::clone(&giver))),
                Role::Deflate => Box::new(PageQueue::new(Direction::Deflate, Arc::clone(&giver))),
                Role::Statistics => Box::new(StatisticsQueue::new(Arc::clone(&shared), Arc::clone(&timer))),
                Role::Hint => Box::new(HintQueue::new(Arc::clone(&shared))),
                Role::Report => {
                    let may_poison = features & PAGE_POISON != 0;
                    Box::new(ReportQueue::new(Arc::clone(&shared), Arc::clone(&giver), may_poison))
                }
                Role::None => Box::new(NoQueue),
            }
        };
        let queues =
            QueueWorkers::start(&self.worker, activation, serve).inspect_err(|_| self.shared.stop())?;
        Ok(Box::new(RunningBalloon { queues, shared: Arc::clone(&self.shared) }))
    }
}

/// A queue that a driver has enabled without the feature to which it belongs.
struct NoQueue;

impl ServeQueue for NoQueue {
    fn serve(&mut self, _queue: &mut Queue, _memory: &GuestMemory) -> Result<Batch, QueueError> {
        Ok(Batch::Waiting)
    }
}

/// A balloon whose driver is ready.
struct RunningBalloon {
    queues: QueueWorkers,
    shared: Arc<Shared>,
}

impl Running for RunningBalloon {
    fn stop(self: Box<Self>, done: Stopped) {
        self.shared.stop();
        let shared = self.shared;
        let done = Box::new(move |states| {
            // What a batch that was under way has left.
            shared.stop();
            done(states);
        });
        Box::new(self.queues).stop(done);
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        self.queues.queue_reset()
    }
}
