//! `QueueWorkers`: the queues of a device that are served on a worker, each by a handler of its own.
//!
//! What a device has to write is [`ServeQueue`]: take chains, do the work, give them back, within a batch. Notifications,
//! interrupts, a driver that breaks the ring, stop and reset of queues are done here.

use std::sync::{Arc, Mutex};

use vmm_memory::{GuestMemory, MemoryReader};

use super::device::{
    ActivateError, Activation, ActiveQueue, DeviceStatus, QueueInterrupt, QueueReset, QueueStopped, Running,
    Stopped,
};
use super::ending::{AllStopped, Ending, Panicked};
use super::queue::{Queue, QueueError};
use crate::sync::lock;
use crate::{Handler, Progress, Wakeup, Worker};

/// How far a batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Every chain that was available is taken: to be called when the driver notifies.
    Empty,
    /// The batch was full: to be called again, after others.
    Full,
    /// Chains are left for something that has not happened yet, and that wakes the queue, or rings its doorbell, when it happens.
    Waiting,
}

/// What a device does with the chains of one queue.
pub trait ServeQueue: Send {
    /// Takes chains, serves them and gives them back; no more than a batch of bounded work, without waiting.
    ///
    /// # Errors
    /// Those of the queue: it is not served any more, and the device needs a reset.
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError>;

    /// What is a reason to call it beside the doorbell.
    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        Vec::new()
    }

    /// The driver has rung the doorbell so often. Called before it is served for that.
    fn notified(&mut self, rings: u64) {
        let _ = rings;
    }

    /// The driver is about to be interrupted.
    fn interrupting(&mut self) {}

    /// How many chains, the last that it took, it has left as they were: whoever goes on with the queue takes them again.
    fn untouched(&self) -> u16 {
        0
    }
}

/// The worker of a queue, by its index.
type Place = Box<dyn Fn(usize) -> Arc<Worker> + Send>;

/// The queues of a running device. Dropped, they are served no more.
pub struct QueueWorkers {
    place: Place,
    memory: MemoryReader,
    status: DeviceStatus,
    servers: Box<dyn Fn(usize) -> Box<dyn ServeQueue> + Send>,
    running: Vec<RunningQueue>,
}

struct RunningQueue {
    index: usize,
    /// One for each reason to call it.
    handlers: Vec<Handler>,
    end: Arc<Ending>,
}

impl QueueWorkers {
    /// Serves the queues of `activation` on `worker`, each with what `servers` makes for its index.
    ///
    /// # Errors
    /// The worker cannot take a queue; none is served then.
    pub fn start(
        worker: &Arc<Worker>,
        activation: Activation,
        servers: impl Fn(usize) -> Box<dyn ServeQueue> + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let worker = Arc::clone(worker);
        Self::start_spread(move |_| Arc::clone(&worker), activation, servers)
    }

    /// The same on the worker that `place` says for the index of a queue.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub fn start_spread(
        place: impl Fn(usize) -> Arc<Worker> + Send + 'static,
        activation: Activation,
        servers: impl Fn(usize) -> Box<dyn ServeQueue> + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let Activation { memory, queues, status, .. } = activation;
        let (place, servers) = (Box::new(place), Box::new(servers));
        let mut workers = Self { place, memory, status, servers, running: Vec::new() };
        for queue in queues {
            workers.add(queue)?;
        }
        Ok(workers)
    }

    /// As [`Running::stop`], with others of whose end `all` tells too.
    pub(super) fn stop_with(self, all: &AllStopped) {
        for queue in self.running {
            queue.stop(all.one());
        }
    }

    fn add(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let ActiveQueue { index, queue, doorbell, interrupt } = queue;
        let device = self.status.name();
        let end = Ending::new();
        let server = (self.servers)(index);
        let others = server.wakeups().into_iter().map(|wakeup| (wakeup, false));
        let wakeups: Vec<(Arc<dyn Wakeup>, bool)> = others.chain([(doorbell as _, true)]).collect();
        let task = Arc::new(Mutex::new(Task {
            server,
            queue,
            memory: self.memory.clone(),
            interrupt,
            status: self.status.clone(),
            broken: false,
            end: Arc::clone(&end),
        }));
        let worker = (self.place)(index);
        let mut handlers = Vec::with_capacity(wakeups.len());
        for (wakeup, is_doorbell) in wakeups {
            let (status, of_failed) = (self.status.clone(), Arc::downgrade(&task));
            let task = Arc::clone(&task);
            let serve = move |rings| lock(&task).run(if is_doorbell { rings } else { 0 });
            let failed = move || {
                status.set_needs_reset(&Panicked);
                // Others that wake it may be left.
                of_failed.upgrade().iter().for_each(|task| lock(task).broken = true);
            };
            let handler = worker.watch(device, wakeup, serve, failed);
            handlers.push(handler.map_err(|source| ActivateError { device, source: source.into() })?);
        }
        self.running.push(RunningQueue { index, handlers, end });
        Ok(())
    }
}

impl RunningQueue {
    /// Ends it; `done` is called when it is not touched any more.
    fn stop(self, done: QueueStopped) {
        if self.end.want(done) {
            self.handlers.into_iter().for_each(Handler::retire);
        }
    }
}

impl Running for QueueWorkers {
    fn stop(self: Box<Self>, done: Stopped) {
        self.stop_with(&AllStopped::new(done));
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }
}

impl QueueReset for QueueWorkers {
    fn stop_queue(&mut self, index: usize, done: QueueStopped) -> bool {
        let at = self.running.iter().position(|queue| queue.index == index);
        if let Some(at) = at {
            self.running.swap_remove(at).stop(done);
        }
        at.is_some()
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        self.add(queue)
    }
}

/// One queue on its worker.
struct Task {
    server: Box<dyn ServeQueue>,
    queue: Queue,
    memory: MemoryReader,
    interrupt: QueueInterrupt,
    status: DeviceStatus,
    broken: bool,
    end: Arc<Ending>,
}

impl Task {
    fn run(&mut self, rings: u64) -> Progress {
        if self.broken {
            return Progress::Done;
        }
        if rings > 0 {
            self.server.notified(rings);
        }
        let result = self.batch();
        result.unwrap_or_else(|error| {
            self.broken = true;
            self.status.set_needs_reset(&error);
            Progress::Done
        })
    }

    /// One batch on one snapshot of the memory.
    fn batch(&mut self) -> Result<Progress, QueueError> {
        let memory = self.memory.load();
        self.queue.busy(&memory)?;
        let served = self.server.serve(&mut self.queue, &memory);
        // What was used before an error is the driver's.
        if self.queue.needs_interrupt(&memory)? {
            self.server.interrupting();
            self.interrupt.trigger();
        }
        Ok(match served? {
            Batch::Empty if self.queue.rest(&memory)? => Progress::More,
            Batch::Empty | Batch::Waiting => Progress::Done,
            Batch::Full => Progress::More,
        })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.next_available = state.next_available.wrapping_sub(self.server.untouched());
        self.end.come(state);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
