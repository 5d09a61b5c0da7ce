//! `BlockQueue`: one queue of a block device, served on the worker of its disk.
//!
//! Whatever wakes it (the doorbell, the engine, the timer of the rate limiter, or the control) it takes a turn: gives back what
//! has ended, takes what is available, gives that to the engine in one system call, interrupts once. While it is at work the
//! driver need not notify. While the driver makes more available all the time, one interrupt is for several turns; one that was seen to
//! do so is waited for, a moment (`moderation.rs`).
//!
//! Lock order: the queue itself, in it the disk's throttle, or `ending`, `handlers` or `settling` of the control; those are innermost.
//! Whoever stops a queue does not lock the queue, which may be in a system call.

use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_memory::{GuestMemory, MemoryReader, PinHolder, PinnedBuffers};

use super::SECTOR;
use super::control::{CANCEL, Control, FLUSH, SETTLE};
use super::device::{Shared, Told};
use super::engine::{Completion, Engine, Operation, Request};
use super::gone::Gone;
use super::moderation::Moderation;
use super::request::{self, Disk, Status, Verdict};
use super::turn::{BATCH, BATCH_BYTES, Rest};
use crate::sync::lock;
use crate::virtio::ending::{Ending, Panicked};
use crate::virtio::queue::{Buffers, Chain, Queue, QueueError, QueueState};
use crate::virtio::throttle::Wait;
use crate::virtio::{ActiveQueue, DeviceStatus, QueueInterrupt};
use crate::worker::Wakeup;
use crate::{Progress, Timer, Worker, WorkerError};

/// When what the kernel did not take is offered again, if nothing ends meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// The driver is waited for as long as the turn before has taken, which is what an interrupt for nothing costs too; at most so long
/// after each chain, and so many times as long in all.
const PATIENCE: Duration = Duration::from_micros(250);
const PATIENCE_IN_ALL: u32 = 4;

/// The token of a flush that no chain asked for; no descriptor has this index.
const OWN_FLUSH: u16 = u16::MAX;

/// A chain that the engine works on.
struct InFlight {
    chain: Chain,
    operation: Operation,
    length: u64,
    since: Instant,
}

/// Somebody who waits for what was in flight at a moment.
struct Settling {
    since: Instant,
    _share: Sender<Infallible>,
}

/// A chain that waits for the rate limiter.
struct Throttled {
    chain: Chain,
    operation: Operation,
    offset: u64,
    length: u64,
    since: Instant,
}

/// One queue and all that serves it.
pub(super) struct BlockQueue {
    device: Arc<Shared>,
    memory: MemoryReader,
    status: DeviceStatus,
    index: usize,
    queue: Queue,
    moderation: Moderation,
    interrupt: QueueInterrupt,
    features: u64,
    engine: Box<dyn Engine>,
    holder: Arc<PinHolder>,
    /// By the first descriptor of the chain.
    in_flight: Vec<Option<InFlight>>,
    throttled: Option<Throttled>,
    settling: Vec<Settling>,
    timer: Arc<Timer>,
    ended: Vec<Completion>,
    /// The driver has broken the ring: nothing is taken or given back any more.
    broken: bool,
    /// A flush that no chain asked for is in flight.
    own_flush: bool,
    /// The engine has no storage any more.
    has_let_go: bool,
    /// Behind the engine, which ends first: it may have who waits for that.
    control: Arc<Control>,
    /// Behind the engine too.
    last: Last,
}

/// Says that a queue has ended, when it is dropped.
struct Last {
    ending: Arc<Ending>,
    state: Option<QueueState>,
}

/// What a queue is made of, beside the [`ActiveQueue`].
pub(super) struct Parts {
    pub(super) device: Arc<Shared>,
    pub(super) memory: MemoryReader,
    pub(super) status: DeviceStatus,
    pub(super) features: u64,
}

impl BlockQueue {
    /// Serves `active` on `worker`, until `control` ends it.
    ///
    /// # Errors
    /// No descriptors, no memory.
    pub(super) fn start(
        worker: &Worker,
        parts: Parts,
        active: ActiveQueue,
        control: &Arc<Control>,
    ) -> io::Result<()> {
        let Parts { device, memory, status, features } = parts;
        let ActiveQueue { index, queue, doorbell, interrupt } = active;
        let holder = PinHolder::new(format!("{}, queue {index}", device.name()), {
            let control = Arc::downgrade(control);
            move |_| control.upgrade().iter().for_each(|control| control.cancel())
        });
        let engine = device.engine(queue.size().saturating_add(1))?;
        let timer = Arc::new(Timer::new()?);
        let wakeups: [(Arc<dyn Wakeup>, bool); 4] = [
            (engine.wakeup(), false),
            (timer.clone(), false),
            (control.bell.clone(), false),
            (doorbell, true),
        ];
        let name = status.name();
        let failed = (status.clone(), Arc::downgrade(control));
        let queue = Arc::new(Mutex::new(Self {
            in_flight: (0..queue.size()).map(|_| None).collect(),
            control: Arc::clone(control),
            throttled: None,
            settling: Vec::new(),
            ended: Vec::new(),
            broken: false,
            own_flush: false,
            has_let_go: false,
            last: Last { ending: Arc::clone(&control.ending), state: None },
            device,
            memory,
            status,
            index,
            queue,
            moderation: Moderation::new(),
            interrupt,
            features,
            engine,
            holder,
            timer,
        }));
        for (wakeup, is_doorbell) in wakeups {
            let queue = Arc::clone(&queue);
            let (status, control_of_failed) = failed.clone();
            let end = move || {
                status.set_needs_reset(&Panicked);
                control_of_failed.upgrade().iter().for_each(|control| control.retire());
            };
            let serve = move |rings| turn(&queue, if is_doorbell { rings } else { 0 });
            let added = worker.watch(name, wakeup, serve, end);
            let handler = added.map_err(|WorkerError { source, .. }| source);
            match handler {
                Ok(handler) => lock(&control.handlers).push(handler),
                Err(error) => {
                    control.remove();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// With the storage lost and nothing in flight: lets the engine go. Returns who is to be told of it.
    fn let_go(&mut self) -> Option<Arc<Told>> {
        if !self.device.is_lost() || self.engine.in_flight() != 0 {
            return None;
        }
        if !std::mem::replace(&mut self.has_let_go, true) {
            self.engine = Box::new(Gone::new(Arc::clone(&self.control.bell)));
        }
        lock(&self.control.losing).take()
    }

    /// One turn. What it returns tells whether another one is due without a wake-up.
    fn turn(&mut self) -> Progress {
        let asked = self.control.asked.swap(0, Ordering::Acquire);
        if asked & SETTLE != 0 {
            let since = Instant::now();
            let shares = std::mem::take(&mut *lock(&self.control.settling));
            self.settling.extend(shares.into_iter().map(|_share| Settling { since, _share }));
        }
        let progress = self.act(asked);
        self.let_settled_go();
        progress
    }

    /// Does what was asked for from outside, and what the driver wants.
    fn act(&mut self, asked: u8) -> Progress {
        if asked & CANCEL != 0 {
            self.engine.cancel(&|request| request.buffers.is_leaving());
        }
        if self.control.is_stopping() {
            return self.finish();
        }
        if self.broken {
            self.submit();
            self.discard_ended();
            return Progress::Done;
        }
        if asked & FLUSH != 0 {
            if std::mem::replace(&mut self.own_flush, true) {
                // One at a time: again when it has ended.
                self.control.asked.fetch_or(FLUSH, Ordering::Relaxed);
            } else {
                self.push_own_flush();
            }
        }
        let result = self.serve();
        // What was used before an error is the driver's.
        if !result.as_ref().is_ok_and(|rest| rest.waits(self.queue.untold())) {
            self.interrupt();
        }
        result.map(Rest::progress).unwrap_or_else(|error| {
            self.broken = true;
            self.leave_line();
            self.status.set_needs_reset(&error);
            Progress::Done
        })
    }

    /// Guest memory is looked at before and after the system call, and not held in it: the kernel may be at it for long, and the
    /// requests have their pins.
    fn serve(&mut self) -> Result<Rest, QueueError> {
        let since = Instant::now();
        let is_alone = self.device.last_turn.swap(self.index, Ordering::Relaxed) == self.index;
        let reader = self.memory.clone();
        let taken = self.begin_all(&reader.load());
        self.submit();
        // What was in the page cache has ended already.
        let memory = reader.load();
        self.give_back(&memory)?;
        Ok(match taken? {
            ControlFlow::Break(()) if self.throttled.is_some() => Rest::Nothing,
            ControlFlow::Break(()) => Rest::Left,
            ControlFlow::Continue(bytes) => {
                let waits = is_alone && Rest::Came(bytes).waits(self.queue.untold());
                let patience = waits.then(|| since.elapsed().min(PATIENCE));
                if self.has_more(&memory, patience)? { Rest::Came(bytes) } else { Rest::Nothing }
            }
        })
    }

    /// Whether there is more by now, or is when a driver that is likely to go on was waited for with `patience`. If not, the
    /// driver will notify.
    fn has_more(&mut self, memory: &GuestMemory, patience: Option<Duration>) -> Result<bool, QueueError> {
        let untold = self.queue.untold();
        self.moderation.seen(untold);
        if let Some(patience) = patience
            && let Some(wanted) = self.moderation.waits_for(untold)
        {
            let came = self.gather(memory, wanted, patience)?;
            if came > 0 {
                self.moderation.seen(untold.saturating_add(came));
                return Ok(true);
            }
            self.moderation.in_vain(untold);
        }
        let has_more = self.queue.rest(memory)?;
        self.moderation.seen(untold.saturating_add(has_more.into()));
        Ok(has_more)
    }

    /// Waits until `wanted` chains are available or have ended, nothing comes for as long as `patience`, or something else is
    /// to be done. Returns how many there are.
    fn gather(&mut self, memory: &GuestMemory, wanted: u16, patience: Duration) -> Result<u16, QueueError> {
        let since = Instant::now();
        let (mut came, mut last) = (0, since);
        loop {
            self.reap();
            let ended = u16::try_from(self.ended.len()).unwrap_or(u16::MAX);
            let now = Instant::now();
            let there = self.queue.available(memory)?.saturating_add(ended);
            if there > came {
                (came, last) = (there, now);
            }
            let is_over = now.duration_since(last) > patience
                || now.duration_since(since) > patience.saturating_mul(PATIENCE_IN_ALL);
            if came >= wanted || is_over || self.control.wants_a_turn() {
                return Ok(came);
            }
            std::hint::spin_loop();
        }
    }

    fn begin_all(&mut self, memory: &GuestMemory) -> Result<ControlFlow<(), u64>, QueueError> {
        self.queue.busy(memory)?;
        self.give_back(memory)?;
        self.take(memory)
    }

    /// Interrupts, if the driver wants that.
    fn interrupt(&mut self) {
        let reader = self.memory.clone();
        if self.queue.needs_interrupt(&reader.load()).unwrap_or(false) {
            // Before it, so that whoever is interrupted finds it counted.
            self.device.counters.interrupted();
            self.interrupt.trigger();
        }
    }

    /// Takes chains and gives them to the engine. `Continue`: all there were, of so many bytes.
    fn take(&mut self, memory: &GuestMemory) -> Result<ControlFlow<(), u64>, QueueError> {
        if let Some(throttled) = self.throttled.take()
            && self.begin_again(memory, throttled)?.is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        let mut bytes = 0_u64;
        for _ in 0..BATCH {
            if bytes >= BATCH_BYTES {
                break;
            }
            let Some(chain) = self.queue.pop(memory)? else { return Ok(ControlFlow::Continue(bytes)) };
            bytes = bytes.saturating_add(chain.readable().len().into());
            bytes = bytes.saturating_add(chain.writable().len().into());
            if self.begin(memory, chain)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Break(()))
    }

    /// Judges a chain and does what comes of it. `Break`: it waits for the rate limiter.
    fn begin(&mut self, memory: &GuestMemory, chain: Chain) -> Result<ControlFlow<()>, QueueError> {
        let since = Instant::now();
        match request::judge(&chain, memory, self.disk())? {
            Verdict::Unanswerable => {
                self.device.counters.refused();
                self.queue.push(memory, chain, 0)?;
            }
            Verdict::Answer(status) => {
                if status != Status::Ok {
                    self.device.counters.refused();
                }
                self.answer(memory, chain, status, 0)?;
            }
            Verdict::Identify => {
                let data = request::data_in(&chain);
                let id = self.device.id();
                let id = id.get(..(data.len() as usize).min(id.len())).unwrap_or_default();
                data.write(memory, id)?;
                // Beyond the identification nothing was written: the status is not in one piece with it.
                let whole = data.len() as usize == id.len();
                let written = if whole { data.len() } else { 0 };
                self.answer(memory, chain, Status::Ok, written)?;
            }
            Verdict::Perform { operation, offset, length } => {
                let waits = self.perform(memory, InFlight { chain, operation, length, since }, offset)?;
                if waits.is_break() {
                    self.device.counters.throttled();
                }
                return Ok(waits);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Goes on with a chain that has waited for the rate limiter. The disk may have shrunk meanwhile.
    fn begin_again(
        &mut self,
        memory: &GuestMemory,
        throttled: Throttled,
    ) -> Result<ControlFlow<()>, QueueError> {
        let Throttled { chain, operation, offset, length, since } = throttled;
        if offset.saturating_add(length).div_ceil(SECTOR) > self.device.capacity() {
            self.device.throttle().leave(&self.control.bell);
            self.device.counters.refused();
            self.answer(memory, chain, Status::IoError, 0)?;
            return Ok(ControlFlow::Continue(()));
        }
        self.perform(memory, InFlight { chain, operation, length, since }, offset)
    }

    fn disk(&self) -> Disk {
        use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};
        let accepted = |bit: u32| self.features & (1 << bit) != 0;
        Disk {
            capacity: self.device.capacity(),
            read_only: self.device.is_read_only(),
            discard: accepted(VIRTIO_BLK_F_DISCARD),
            write_zeroes: accepted(VIRTIO_BLK_F_WRITE_ZEROES),
        }
    }

    fn perform(
        &mut self,
        memory: &GuestMemory,
        begun: InFlight,
        offset: u64,
    ) -> Result<ControlFlow<()>, QueueError> {
        let InFlight { chain, operation, length, since } = begun;
        if self.device.is_lost() {
            // It may have waited for the rate limiter.
            self.device.throttle().leave(&self.control.bell);
            self.device.counters.ended(operation, length, false, since.elapsed());
            self.answer(memory, chain, Status::IoError, 0)?;
            return Ok(ControlFlow::Continue(()));
        }
        // Zeroes are written too, by the host.
        let bytes = match operation {
            Operation::Read | Operation::Write | Operation::WriteZeroes { .. } => length,
            Operation::Flush | Operation::Discard => 0,
        };
        if let Err(wait) = self.device.throttle().admit(&self.control.bell, bytes) {
            if let Wait::For(delay) = wait {
                self.wake_in(delay);
            }
            self.throttled = Some(Throttled { chain, operation, offset, length, since });
            return Ok(ControlFlow::Break(()));
        }
        let data = match operation {
            Operation::Read => Some(request::data_in(&chain)),
            Operation::Write => Some(request::data_out(&chain)),
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => None,
        };
        let pieces = data.into_iter().flat_map(Buffers::iter);
        let pieces = pieces.map(|piece| (piece.address, u64::from(piece.length)));
        let Ok(buffers) = PinnedBuffers::pin(memory, &self.holder, pieces) else {
            self.device.counters.ended(operation, length, false, since.elapsed());
            self.answer(memory, chain, Status::IoError, 0)?;
            return Ok(ControlFlow::Continue(()));
        };
        let token = chain.head();
        let durable = !self.device.is_writeback();
        if let Some(place) = self.in_flight.get_mut(usize::from(token)) {
            *place = Some(InFlight { chain, operation, length, since });
        }
        self.engine.push(Request { token, operation, durable, offset, length, buffers });
        Ok(ControlFlow::Continue(()))
    }

    fn push_own_flush(&mut self) {
        self.engine.push(Request {
            token: OWN_FLUSH,
            operation: Operation::Flush,
            durable: false,
            offset: 0,
            length: 0,
            buffers: PinnedBuffers::none(),
        });
    }

    fn submit(&mut self) {
        if let Err(error) = self.engine.submit() {
            self.try_again(&error);
        }
    }

    /// What has ended in a queue that gives nothing back any more.
    fn discard_ended(&mut self) {
        self.reap();
        self.ended.clear();
    }

    fn reap(&mut self) {
        if let Err(error) = self.engine.reap(&mut self.ended) {
            self.try_again(&error);
        }
    }

    /// What the engine could not give to the host is given again, though nothing may end meanwhile.
    fn try_again(&self, error: &io::Error) {
        tracing::debug!(disk = self.device.name(), %error, "the host takes no requests for the moment");
        self.wake_in(RETRY);
    }

    /// Gives back the chains whose requests have ended.
    fn give_back(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        self.reap();
        let mut ended = std::mem::take(&mut self.ended);
        for Completion { token, result } in ended.drain(..) {
            if token == OWN_FLUSH {
                self.own_flush_ended(result);
                continue;
            }
            let Some(begun) = self.in_flight.get_mut(usize::from(token)).and_then(Option::take) else {
                continue;
            };
            let InFlight { chain, operation, length, since } = begun;
            self.device.counters.ended(operation, length, result.is_ok(), since.elapsed());
            let (status, written) = match result {
                Ok(()) if operation == Operation::Read => (Status::Ok, request::data_in(&chain).len()),
                Ok(()) => (Status::Ok, 0),
                Err(error) => {
                    self.device.report(operation, &error);
                    (Status::IoError, 0)
                }
            };
            self.answer(memory, chain, status, written)?;
        }
        self.ended = ended;
        Ok(())
    }

    fn own_flush_ended(&mut self, result: io::Result<()>) {
        self.own_flush = false;
        if let Err(error) = result {
            self.device.report(Operation::Flush, &error);
        }
        if self.control.asked.load(Ordering::Relaxed) & FLUSH != 0 {
            self.control.ring();
        }
    }

    /// Writes the status behind `written` bytes of data, and gives the chain back.
    fn answer(
        &mut self,
        memory: &GuestMemory,
        chain: Chain,
        status: Status,
        written: u32,
    ) -> Result<(), QueueError> {
        request::status_of(&chain).write(memory, &[status.byte()])?;
        // What is said to be written begins at the first byte: the status counts if nothing is missing before it.
        let whole = request::data_in(&chain).len() == written;
        self.queue.push(memory, chain, if whole { written.saturating_add(1) } else { 0 })
    }

    fn wake_in(&self, delay: Duration) {
        if let Err(error) = self.timer.set(delay) {
            // Cannot be, and is not to be waited for: a turn sets it again.
            tracing::error!(disk = self.device.name(), %error, "a timer cannot be set");
            self.control.ring();
        }
    }

    /// Lets those go on who have waited for what was in flight, and is not any more.
    fn let_settled_go(&mut self) {
        let is_idle = self.engine.in_flight() == 0;
        let in_flight = &self.in_flight;
        let has_since = |moment| in_flight.iter().flatten().any(|begun| begun.since <= moment);
        // What has ended in a broken queue is not taken out of it.
        self.settling.retain(|settling| !is_idle && has_since(settling.since));
    }

    /// Nothing that waits for the rate limiter goes on here: others are not to wait for it.
    fn leave_line(&self) {
        if self.throttled.is_some() {
            self.device.throttle().leave(&self.control.bell);
        }
    }

    /// A turn of a queue that is to end: what is in flight ends and is given back, nothing is taken. Nothing is cancelled
    /// either: a queue that stops may go on elsewhere, and its driver is not to see errors.
    fn finish(&mut self) -> Progress {
        self.leave_line();
        self.submit();
        let reader = self.memory.clone();
        if self.broken || self.give_back(&reader.load()).is_err() {
            self.broken = true;
            self.discard_ended();
        } else {
            self.interrupt();
        }
        if self.engine.in_flight() == 0 {
            // The last share of this queue goes when this call returns.
            self.control.retire();
        }
        Progress::Done
    }
}

/// A turn of `queue`, whose doorbell has rung so often. Who waits for the storage that it has let go is told without its lock.
fn turn(queue: &Mutex<BlockQueue>, rings: u64) -> Progress {
    let mut queue = lock(queue);
    queue.device.counters.notified(rings);
    let progress = queue.turn();
    let told = queue.let_go();
    drop(queue);
    drop(told);
    progress
}

impl Drop for BlockQueue {
    fn drop(&mut self) {
        self.leave_line();
        let mut state = self.queue.state();
        // The chain that waits for the rate limiter is to be taken again.
        if self.throttled.is_some() {
            state.next_available = state.next_available.wrapping_sub(1);
        }
        self.last.state = Some(state);
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(state) = self.state {
            self.ending.come(state);
        }
    }
}
