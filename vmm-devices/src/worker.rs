//! `Worker`: a thread that serves eventfds and other descriptors: one loop over epoll, with handlers that come and go while it runs.
//!
//! Every ready source is served once before any is served again. A handler bounds its work by a batch and says
//! [`Progress::More`] when some is left.
//!
//! Lock order: nothing is locked under `handlers`; a handler runs under its own lock only.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use vmm_core::thread::Kind;

use vmm_core::{VmEvent, VmEvents, in_read_section};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a worker cannot be started, or a handler cannot be added to it.
#[derive(Debug, thiserror::Error)]
#[error("the worker cannot serve {device}")]
pub struct WorkerError {
    /// The device it was for.
    pub device: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// The end of a handler could not be waited for. The handler is not called again all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAwaited {
    /// The worker itself asked for the end of one of its handlers.
    #[error("a worker cannot wait for itself")]
    OnOwnThread,
    /// Asked for inside an access: the handler may be waiting for its end.
    #[error("the end of a handler cannot be waited for inside a read section of the same thread")]
    InReadSection,
}

/// What a call of a handler has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left: to be called at the next ring.
    Done,
    /// The batch was not enough: to be called again, without a ring, after the other sources.
    More,
}

type Serve = Box<dyn FnMut(u64) -> Progress + Send>;
type Failed = Box<dyn FnOnce() + Send>;

/// What is called, while it is called; `None` once no call will come.
struct Live {
    serve: Serve,
    failed: Failed,
}

/// What a worker waits for: a descriptor that is readable when there is something to do.
pub trait Wakeup: AsRawFd + Send + Sync {
    /// Makes it unreadable until the next time, and says how often it was signalled; 0 if it was not. Does not block.
    fn take(&self) -> u64;

    /// Whether only news wake: the handler takes all there is, or knows when it will look again, and is not called for what it has
    /// left, nor for a descriptor that is out of order for good. Nothing is to be made unreadable then.
    fn only_news(&self) -> bool {
        false
    }
}

impl Wakeup for EventFd {
    fn take(&self) -> u64 {
        self.read().unwrap_or(0)
    }
}

struct Source {
    device: &'static str,
    doorbell: Arc<dyn Wakeup>,
    live: Mutex<Option<Live>>,
}

impl Source {
    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Shared {
    epoll: Epoll,
    /// Ends the wait.
    stop: EventFd,
    stopping: AtomicBool,
    next: AtomicU64,
    /// By the number under which epoll knows them.
    handlers: Mutex<HashMap<u64, Arc<Source>>>,
    /// Set before the first handler is added.
    thread: OnceLock<ThreadId>,
}

/// The number under which epoll knows `stop`.
const STOP: u64 = 0;

/// Sources that one wait brings at most; the others come with the next, as epoll takes turns.
const READY: usize = 32;

/// A running worker. Dropped, it is stopped and joined; its handlers are dropped then. Not to be dropped inside a read
/// section, which a handler may be waiting for.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A handler that a worker has. Dropped, as [`remove`](Self::remove).
#[must_use = "a handler that is dropped is removed"]
pub struct Handler {
    worker: Weak<Shared>,
    token: u64,
}

impl Worker {
    /// Starts a thread of `kind`, named after it, without handlers. If the host fails it, so that it cannot go on, it says so to
    /// `events`.
    ///
    /// # Errors
    /// No thread or no descriptor; it takes two.
    pub fn spawn(kind: &'static Kind, events: VmEvents) -> Result<Self, WorkerError> {
        Self::start(kind, events).map_err(|source| WorkerError { device: kind.name, source })
    }

    fn start(kind: &'static Kind, events: VmEvents) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
        let shared = Arc::new(Shared {
            epoll,
            stop,
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(STOP.wrapping_add(1)),
            handlers: Mutex::default(),
            thread: OnceLock::new(),
        });
        let thread = vmm_core::thread::spawn(kind, kind.name, {
            let shared = Arc::clone(&shared);
            move || {
                if let Err(error) = shared.work() {
                    let name = kind.name;
                    events.send(VmEvent::Internal(format!("the worker {name} cannot wait: {error}")));
                }
            }
        })?;
        // Nobody else sets it.
        let _ = shared.thread.set(thread.thread().id());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Calls `serve` with the number of rings each time `doorbell`, which is non-blocking, was rung. If `serve` panics it is
    /// never called again, and `failed` is called on the worker's thread: the device is out of order, the others go on. Neither
    /// may wait for what waits for this worker.
    ///
    /// # Errors
    /// The host refuses; `doorbell` has a handler of this worker already.
    pub fn add(
        &self,
        device: &'static str,
        doorbell: Arc<EventFd>,
        serve: impl FnMut(u64) -> Progress + Send + 'static,
        failed: impl FnOnce() + Send + 'static,
    ) -> Result<Handler, WorkerError> {
        self.watch(device, doorbell, serve, failed)
    }

    /// As [`add`](Self::add), of anything that can be waited for: `serve` gets what [`Wakeup::take`] says.
    ///
    /// # Errors
    /// As of [`add`](Self::add).
    pub fn watch(
        &self,
        device: &'static str,
        doorbell: Arc<dyn Wakeup>,
        serve: impl FnMut(u64) -> Progress + Send + 'static,
        failed: impl FnOnce() + Send + 'static,
    ) -> Result<Handler, WorkerError> {
        let fd = doorbell.as_raw_fd();
        let edge = if doorbell.only_news() { EventSet::EDGE_TRIGGERED } else { EventSet::empty() };
        let token = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let live = Live { serve: Box::new(serve), failed: Box::new(failed) };
        let source = Arc::new(Source { device, doorbell, live: Mutex::new(Some(live)) });
        self.shared.lock().insert(token, source);
        let event = EpollEvent::new(EventSet::IN | edge, token);
        let added = self.shared.epoll.ctl(ControlOperation::Add, fd, event);
        if let Err(source) = added {
            // Dropped without the lock.
            let refused = self.shared.lock().remove(&token);
            drop(refused);
            return Err(WorkerError { device, source });
        }
        Ok(Handler { worker: Arc::downgrade(&self.shared), token })
    }
}

impl Handler {
    /// Ends it: when this returns, no call is running and none will come, and what the handler owned is gone. Rings stay in
    /// the eventfd. Not to be called under a lock that the handler takes.
    ///
    /// # Errors
    /// Called where nobody can wait; see [`NotAwaited`]. What the handler owns goes when its call, if it is running, returns.
    pub fn remove(self) -> Result<(), NotAwaited> {
        self.end()
    }

    /// Ends it without waiting, from anywhere: no call will come. What the handler owns goes before this returns, or when the
    /// call that is running returns, on the worker's thread.
    pub fn retire(self) {
        if let Some(worker) = self.worker.upgrade() {
            let source = worker.forget(self.token);
            drop(source);
        }
    }

    fn end(&self) -> Result<(), NotAwaited> {
        match self.worker.upgrade() {
            Some(worker) => worker.remove(self.token),
            None => Ok(()),
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // Refused: it ends all the same.
        let _ = self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Source>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_own_thread(&self) -> bool {
        self.thread.get() == Some(&thread::current().id())
    }

    fn remove(&self, token: u64) -> Result<(), NotAwaited> {
        let Some(source) = self.forget(token) else { return Ok(()) };
        if self.is_own_thread() {
            return Err(NotAwaited::OnOwnThread);
        }
        if in_read_section() {
            return Err(NotAwaited::InReadSection);
        }
        // Waits for a call that runs; the loop finds nothing to call after it.
        let live = source.lock().take();
        drop(live);
        Ok(())
    }

    /// Takes a source out of epoll and out of the table.
    fn forget(&self, token: u64) -> Option<Arc<Source>> {
        let source = self.lock().remove(&token)?;
        let fd = source.doorbell.as_raw_fd();
        if let Err(error) = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
            // What stands for something else by now is forgotten already.
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            tracing::error!(device = source.device, %error, "a worker cannot forget a doorbell");
        }
        Some(source)
    }

    /// The loop: waits for rings, or looks for them if work is left; serves each ready source once.
    fn work(&self) -> io::Result<()> {
        let (mut turn, mut unfinished) = (Vec::with_capacity(READY), Vec::new());
        loop {
            turn.clear();
            self.ready(if unfinished.is_empty() { -1 } else { 0 }, &mut turn)?;
            // What is ready comes first: what is left over had its turn. A source in both is called once.
            unfinished.retain(|token| !turn.contains(token));
            turn.append(&mut unfinished);
            for &token in &turn {
                if self.stopping.load(Ordering::Acquire) {
                    return Ok(());
                }
                if self.serve(token) == Progress::More {
                    unfinished.push(token);
                }
            }
        }
    }

    /// Puts the sources that were rung into `ready`, waiting for one if `timeout` is -1.
    fn ready(&self, timeout: i32, ready: &mut Vec<u64>) -> io::Result<()> {
        let mut events = [EpollEvent::default(); READY];
        loop {
            match self.epoll.wait(timeout, &mut events) {
                Ok(count) => {
                    ready.extend(events.iter().take(count).map(EpollEvent::data));
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Calls one handler, if it is still there.
    fn serve(&self, token: u64) -> Progress {
        let Some(source) = self.lock().get(&token).map(Arc::clone) else { return Progress::Done };
        let mut live = source.lock();
        let Some(Live { serve, .. }) = &mut *live else { return Progress::Done };
        // Empty when work was left over and nobody has rung since.
        let rings = source.doorbell.take();
        let served = catch_unwind(AssertUnwindSafe(|| serve(rings)));
        if let Ok(progress) = served {
            return progress;
        }
        tracing::error!(device = source.device, "a handler panicked and is not called again");
        if let Some(Live { serve, failed }) = live.take() {
            // Its state is whatever the panic left; neither its end nor its owner's answer takes the worker down.
            let told =
                catch_unwind(AssertUnwindSafe(failed)).and(catch_unwind(AssertUnwindSafe(|| drop(serve))));
            if told.is_err() {
                tracing::error!(device = source.device, "the end of a handler panicked too");
            }
        }
        // Not before: whoever removes it finds it and waits for the lock, until all that it owned is gone.
        drop(live);
        self.forget(token);
        Progress::Done
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // The counter of a fresh eventfd cannot be full.
        let _ = self.shared.stop.write(1);
        // A handler that owns its worker drops it here: the thread ends by itself after the call.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // Panics of handlers are caught by the thread.
            let _ = thread.join();
        }
        let handlers = mem::take(&mut *self.shared.lock());
        drop(handlers);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("handlers", &self.shared.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests;
