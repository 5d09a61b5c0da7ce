//! `KernelQueues`: a device whose driver is ready, some of whose queues the kernel serves and the others a worker.
//!
//! What takes a lock of the kernel's is done on the worker: the beginning, the end, and interrupts that get another vector. Afterwards the worker
//! sleeps: doorbells and vectors are between the guest and the kernel. If a queue has no vector at the moment, the kernel signals the
//! worker, which interrupts.

use std::error::Error;
use std::sync::{Arc, Mutex, Weak};

use vm_memory::{Address, Bytes, GuestAddress};
use vmm_memory::{GuestMemory, MemoryReader};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Backend, VhostRing};
use crate::sync::{Ordering, lock};
use crate::virtio::ending::{AllStopped, Panicked};
use crate::virtio::queue::{Queue, QueueState};
use crate::virtio::serve::{QueueWorkers, ServeQueue};
use crate::virtio::{ActivateError, Activation, ActiveQueue, DeviceStatus, QueueInterrupt, Running, Stopped};
use crate::{Handler, Progress, Wakeup, Worker};

/// What a device does beside queues that the kernel serves, on the worker.
pub(crate) trait Attend: Send {
    /// Whether there is something behind the rings, so that the kernel can serve them. Asked before it does, and when it did not.
    fn is_there(&mut self) -> bool;

    /// Something has woken the device: whether what was not behind the rings is there again, so that they begin anew.
    fn is_there_again(&mut self) -> bool;

    /// What wakes it.
    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>>;

    /// Why nobody serves the rings any more, if it is so, until the device is reset. Asked when something has woken the device, and
    /// when the rings were not served.
    fn is_lost(&mut self) -> Option<Box<dyn Error + Send + Sync>> {
        None
    }

    /// Who serves the queues when it is so; `None`: nobody.
    fn after_loss(&self) -> Option<Servers> {
        None
    }
}

/// What makes who serves a queue, for its index.
pub(crate) type Servers = Box<dyn Fn(usize) -> Box<dyn ServeQueue> + Send>;

/// Behind the rings there is always the kernel.
pub(crate) struct Unattended;

impl Attend for Unattended {
    fn is_there(&mut self) -> bool {
        true
    }

    fn is_there_again(&mut self) -> bool {
        false
    }

    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        Vec::new()
    }
}

/// Where the index of a used ring is (virtio 1.3, section 2.7.8).
const USED_INDEX: u64 = 2;

/// The kernel has found a ring broken.
#[derive(Debug, thiserror::Error)]
#[error("vhost has found a fault in a ring or in what is in it")]
struct RingFault;

/// The kernel does not serve the queues.
#[derive(Debug, thiserror::Error)]
#[error("vhost does not serve the queues")]
struct NotServed(#[source] std::io::Error);

/// The queues of a device whose driver is ready. Dropped, they are served no more.
pub(crate) struct KernelQueues {
    others: QueueWorkers,
    /// One for each reason to call the task.
    handlers: Vec<Handler>,
    /// Rung when an interrupt has another vector, and at the end.
    bell: Arc<EventFd>,
    /// Rung at the end too: a handler that has panicked is not called any more.
    error: Arc<EventFd>,
    leaving: Arc<Mutex<Leaving>>,
}

/// What the task gets when it is to end.
#[derive(Default)]
struct Leaving {
    /// Its handlers, which it ends itself, on the worker.
    handlers: Vec<Handler>,
    /// Is told when the kernel serves nothing any more.
    all: Option<AllStopped>,
}

impl KernelQueues {
    /// Has `backend` serve the first `served` queues of `activation`, with what `attend` does beside them, and `worker` the others, each with what
    /// `servers` makes for its index.
    ///
    /// # Errors
    /// The host does not give what it takes; none is served then.
    pub(crate) fn start(
        worker: &Arc<Worker>,
        activation: Activation,
        (backend, served): (Arc<Backend>, usize),
        attend: Box<dyn Attend>,
        servers: impl Fn(usize) -> Box<dyn ServeQueue> + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let Activation { features, memory, queues, status } = activation;
        let device = status.name();
        let refused = |source: Box<dyn Error + Send + Sync>| ActivateError { device, source };
        let (own, others) = queues.into_iter().partition(|queue| queue.index < served);
        let parts = Parts::new(own).map_err(|error| refused(error.into()))?;
        let rest = Rest { worker: Arc::downgrade(worker), features, memory: memory.clone() };
        let others = Activation { features, memory, queues: others, status: status.clone() };
        let others = QueueWorkers::start(worker, others, servers)?;
        let (bell, error) = (Arc::clone(&parts.bell), Arc::clone(&parts.error));
        let wakeups = parts.wakeups(&*attend);
        backend.set(features, parts.rings());
        let leaving = Arc::default();
        let task = Task {
            backend,
            attend,
            status: status.clone(),
            parts,
            leaving: Arc::clone(&leaving),
            begun: false,
            broken: false,
            rest,
            afterwards: None,
        };
        let task = Arc::new(Mutex::new(task));
        let mut handlers = Vec::with_capacity(wakeups.len());
        for (reason, wakeup) in wakeups {
            let (status, of_failed) = (status.clone(), Arc::downgrade(&task));
            let task = Arc::clone(&task);
            let serve = move |rings| {
                lock(&task).run(reason, rings);
                Progress::Done
            };
            let failed = move || {
                status.set_needs_reset(&Panicked);
                of_failed.upgrade().iter().for_each(|task| lock(task).broken = true);
            };
            let handler = worker.watch(device, wakeup, serve, failed);
            handlers.push(handler.map_err(|error| refused(error.into()))?);
        }
        Ok(Self { others, handlers, bell, error, leaving })
    }
}

impl Running for KernelQueues {
    fn stop(self: Box<Self>, done: Stopped) {
        let all = AllStopped::new(done);
        self.others.stop_with(&all);
        *lock(&self.leaving) = Leaving { handlers: self.handlers, all: Some(all) };
        ring(&self.bell);
        ring(&self.error);
    }

    fn interrupt_moved(&mut self, _index: usize) {
        ring(&self.bell);
    }
}

fn ring(bell: &EventFd) {
    // Its counter cannot be full.
    let _ = bell.write(1);
}

/// Why the task is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// To begin, or to look at the interrupts again.
    Bell,
    /// The kernel has found a fault.
    Error,
    /// The kernel wants an interrupt that has no vector, of the queue at this place.
    Interrupt(usize),
    /// Of what the device attends to.
    Other,
}

/// One queue that the kernel serves.
struct KernelQueue {
    index: usize,
    state: QueueState,
    doorbell: Arc<EventFd>,
    interrupt: QueueInterrupt,
    /// Signalled by the kernel while the interrupt has no eventfd.
    relay: Arc<EventFd>,
}

impl KernelQueue {
    fn new(queue: ActiveQueue) -> std::io::Result<Self> {
        let ActiveQueue { index, queue, doorbell, interrupt } = queue;
        let relay = eventfd()?;
        Ok(Self { index, state: queue.state(), doorbell, interrupt, relay })
    }

    /// The queue for whoever serves it here, behind what was used last.
    fn again(
        &self,
        state: &QueueState,
        features: u64,
        memory: &GuestMemory,
    ) -> Result<ActiveQueue, Box<dyn Error>> {
        let used = GuestAddress(state.used_ring).checked_add(USED_INDEX).ok_or("no address")?;
        let used = u16::from_le(memory.load(used, Ordering::Acquire)?);
        let state = QueueState { next_available: used, next_used: used, ..*state };
        Ok(ActiveQueue {
            index: self.index,
            queue: Queue::new(&state, features, memory)?,
            doorbell: Arc::clone(&self.doorbell),
            interrupt: self.interrupt.clone(),
        })
    }

    /// What the kernel is to signal.
    fn call(&self) -> Arc<EventFd> {
        self.interrupt.eventfd().map_or_else(|| Arc::clone(&self.relay), Arc::new)
    }
}

fn eventfd() -> std::io::Result<Arc<EventFd>> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new)
}

/// The queues, and what wakes the worker for them.
struct Parts {
    queues: Vec<KernelQueue>,
    bell: Arc<EventFd>,
    error: Arc<EventFd>,
}

impl Parts {
    /// With the bell rung.
    fn new(queues: Vec<ActiveQueue>) -> std::io::Result<Self> {
        let queues = queues.into_iter().map(KernelQueue::new).collect::<Result<_, _>>()?;
        let (bell, error) = (eventfd()?, eventfd()?);
        ring(&bell);
        Ok(Self { queues, bell, error })
    }

    fn rings(&self) -> Vec<VhostRing> {
        let ring = |queue: &KernelQueue| VhostRing {
            index: queue.index,
            queue: queue.state,
            kick: Arc::clone(&queue.doorbell),
            call: queue.call(),
            error: Arc::clone(&self.error),
        };
        self.queues.iter().map(ring).collect()
    }

    fn wakeups(&self, attend: &dyn Attend) -> Vec<(Reason, Arc<dyn Wakeup>)> {
        let mut wakeups: Vec<(_, Arc<dyn Wakeup>)> =
            vec![(Reason::Bell, Arc::clone(&self.bell) as _), (Reason::Error, Arc::clone(&self.error) as _)];
        for (place, queue) in self.queues.iter().enumerate() {
            wakeups.push((Reason::Interrupt(place), Arc::clone(&queue.relay) as _));
        }
        wakeups.extend(attend.wakeups().into_iter().map(|wakeup| (Reason::Other, wakeup)));
        wakeups
    }
}

/// What is done on the worker. Dropped, the kernel serves nothing any more.
struct Task {
    backend: Arc<Backend>,
    attend: Box<dyn Attend>,
    status: DeviceStatus,
    parts: Parts,
    leaving: Arc<Mutex<Leaving>>,
    begun: bool,
    broken: bool,
    rest: Rest,
    /// The queues that are served here after a loss.
    afterwards: Option<QueueWorkers>,
}

/// What it takes to serve queues here.
struct Rest {
    /// Which has the task.
    worker: Weak<Worker>,
    features: u64,
    memory: MemoryReader,
}

impl Task {
    fn run(&mut self, reason: Reason, rings: u64) {
        let leaving = std::mem::take(&mut lock(&self.leaving).handlers);
        if !leaving.is_empty() {
            self.broken = true;
            // What this owns goes when the call returns.
            leaving.into_iter().for_each(Handler::retire);
        }
        if self.broken {
            return;
        }
        if !self.begun {
            self.begun = true;
            self.look_at_interrupts();
            self.begin();
        } else if reason == Reason::Bell {
            self.look_at_interrupts();
        }
        if self.broken {
            return;
        }
        match reason {
            Reason::Error if rings > 0 => match self.attend.is_lost() {
                Some(loss) => self.fail(&*loss),
                None => self.fail(&RingFault),
            },
            Reason::Interrupt(place) if rings > 0 => {
                self.parts.queues.get(place).iter().for_each(|queue| queue.interrupt.trigger());
            }
            Reason::Bell | Reason::Error | Reason::Interrupt(_) => {}
            Reason::Other => self.look_around(),
        }
    }

    fn look_around(&mut self) {
        if let Some(loss) = self.attend.is_lost() {
            self.fail(&*loss);
        } else if self.attend.is_there_again() {
            // What the kernel knew of it is of the one that is gone.
            self.backend.pause();
            self.begin();
        }
    }

    fn begin(&mut self) {
        if !self.attend.is_there() {
            return;
        }
        match self.backend.run() {
            Ok(false) => {}
            // The driver has looked already, at what the one before had said.
            Ok(true) => self.status.config_changed(),
            Err(error) if self.attend.is_there() => self.fail(&NotServed(error)),
            Err(_) => {}
        }
    }

    fn look_at_interrupts(&mut self) {
        for queue in &self.parts.queues {
            if let Err(error) = self.backend.set_call(queue.index, queue.call()) {
                self.fail(&NotServed(error));
                return;
            }
        }
    }

    fn fail(&mut self, reason: &dyn Error) {
        self.broken = true;
        self.backend.pause();
        self.status.set_needs_reset(reason);
        if self.attend.is_lost().is_some()
            && let Err(error) = self.serve_afterwards()
        {
            tracing::error!(%error, "requests that were not served stay so");
        }
    }

    /// Has the queues served here that nobody serves any more, from the last request on that was answered.
    fn serve_afterwards(&mut self) -> Result<(), Box<dyn Error>> {
        let Some((worker, servers)) = self.rest.worker.upgrade().zip(self.attend.after_loss()) else {
            return Ok(());
        };
        let Rest { features, memory, .. } = &self.rest;
        let snapshot = memory.load();
        let states = self.backend.end();
        let queues = states.iter().filter_map(|state| {
            let queue = self.parts.queues.iter().find(|queue| queue.index == state.index)?;
            Some(queue.again(state, *features, &snapshot))
        });
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        drop(snapshot);
        // Once for what was notified of before.
        queues.iter().for_each(|queue| ring(&queue.doorbell));
        let status = self.status.clone();
        let activation = Activation { features: *features, memory: memory.clone(), queues, status };
        self.afterwards = Some(QueueWorkers::start(&worker, activation, servers)?);
        // Once for what was used and not told of.
        self.parts.queues.iter().for_each(|queue| queue.interrupt.trigger());
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let states = self.backend.end();
        // Absent if nobody waits for the end.
        let all = lock(&self.leaving).all.take();
        for (all, state) in all.iter().flat_map(|all| states.iter().map(move |state| (all, *state))) {
            all.one()(state);
        }
        if let (Some(all), Some(queues)) = (all, self.afterwards.take()) {
            queues.stop_with(&all);
        }
    }
}
