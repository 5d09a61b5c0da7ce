//! `Pool`: the engine of threads, for hosts without io_uring and for storage that is not a plain file.
//!
//! Threads are started as requests need them, and end with the engine. A request that has begun cannot be cancelled, but zeros that
//! are written in pieces: between two of them, and others have their turn there.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_core::thread::spawn;
use vmm_memory::PinnedBuffers;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::calls::DISK_IO;
use super::counters::add;
use super::engine::{Completion, Engine, Operation, Request};
use super::storage::{Storage, perform};
use crate::worker::Wakeup;

/// Threads of one engine at most.
const MOST_THREADS: usize = 8;

/// Zeros of which a thread writes a piece.
struct Zeroing {
    /// What they were before that piece.
    request: Request,
    /// The piece is the last.
    cancelled: bool,
}

#[derive(Default)]
struct Tray {
    waiting: VecDeque<Request>,
    zeroing: Vec<Zeroing>,
    ended: Vec<Completion>,
    idle: usize,
    closing: bool,
}

struct Shared {
    storage: Arc<dyn Storage>,
    /// Signalled when something has ended.
    completed: Arc<EventFd>,
    tray: Mutex<Tray>,
    /// Something waits, or the pool closes.
    news: Condvar,
    /// Requests that were given to the host.
    calls: Arc<AtomicU64>,
}

/// An engine of threads. Dropped, it cancels what has not begun and waits for the rest.
pub struct Pool {
    shared: Arc<Shared>,
    pushed: Vec<Request>,
    in_flight: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Serves `storage`; requests that are given to the host are counted in `calls`.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new(storage: Arc<dyn Storage>, calls: &Arc<AtomicU64>) -> io::Result<Self> {
        let completed = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let shared = Shared {
            storage,
            completed,
            tray: Mutex::default(),
            news: Condvar::new(),
            calls: Arc::clone(calls),
        };
        Ok(Self { shared: Arc::new(shared), pushed: Vec::new(), in_flight: 0, threads: Vec::new() })
    }

    /// Starts as many threads as are missing for what waits.
    ///
    /// # Errors
    /// There is none, and none can be started.
    fn staff(&mut self, missing: usize) -> io::Result<()> {
        for _ in 0..missing.min(MOST_THREADS.saturating_sub(self.threads.len())) {
            let shared = Arc::clone(&self.shared);
            match spawn(&DISK_IO, DISK_IO.name, move || shared.work()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) if self.threads.is_empty() => return Err(error),
                // Slower.
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Engine for Pool {
    fn push(&mut self, request: Request) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.pushed.push(request);
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.pushed.is_empty() {
            return Ok(());
        }
        let missing = {
            let tray = self.shared.lock();
            (tray.waiting.len().saturating_add(self.pushed.len())).saturating_sub(tray.idle)
        };
        self.staff(missing)?;
        self.shared.lock().waiting.extend(self.pushed.drain(..));
        self.shared.news.notify_all();
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) -> io::Result<()> {
        let mut tray = self.shared.lock();
        self.in_flight = self.in_flight.saturating_sub(tray.ended.len());
        ended.append(&mut tray.ended);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn cancel(&mut self, concerned: &dyn Fn(&Request) -> bool) {
        let mut tray = self.shared.lock();
        let waiting = std::mem::take(&mut tray.waiting).into_iter().chain(self.pushed.drain(..));
        let (cancelled, kept): (Vec<_>, Vec<_>) = waiting.partition(concerned);
        tray.waiting.extend(kept);
        for request in cancelled {
            tray.ended.push(Completion { token: request.token, result: Err(cancelled_error()) });
        }
        for zeroing in tray.zeroing.iter_mut().filter(|zeroing| concerned(&zeroing.request)) {
            zeroing.cancelled = true;
        }
        drop(tray);
        self.shared.signal();
    }

    fn wakeup(&self) -> Arc<dyn Wakeup> {
        self.shared.completed.clone()
    }
}

impl Tray {
    /// Takes note of a request that a thread begins, if it may have to go on after that.
    fn begin(&mut self, request: &Request) {
        let Request { token, operation, durable, offset, length, .. } = *request;
        if matches!(operation, Operation::WriteZeroes { .. }) {
            let request =
                Request { token, operation, durable, offset, length, buffers: PinnedBuffers::none() };
            self.zeroing.push(Zeroing { request, cancelled: false });
        }
    }

    /// Takes what a thread has done of a request, and what is left, which then waits behind the others. Returns whether the request
    /// has ended.
    fn end(&mut self, token: u16, result: io::Result<Option<Request>>) -> bool {
        let begun = self.zeroing.iter().position(|zeroing| zeroing.request.token == token);
        let is_cancelled = begun.is_some_and(|place| self.zeroing.swap_remove(place).cancelled);
        let result = match result {
            Ok(Some(rest)) if !is_cancelled => {
                self.waiting.push_back(rest);
                return false;
            }
            Ok(Some(_)) => Err(cancelled_error()),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        self.ended.push(Completion { token, result });
        true
    }
}

fn cancelled_error() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) {
        // Its counter cannot be full: it counts less than there are requests.
        let _ = self.completed.write(1);
    }

    fn work(&self) {
        let mut tray = self.lock();
        loop {
            if let Some(request) = tray.waiting.pop_front() {
                let token = request.token;
                tray.begin(&request);
                drop(tray);
                add(&self.calls, 1);
                let performed = catch_unwind(AssertUnwindSafe(|| perform(&*self.storage, request)));
                let result = performed.unwrap_or_else(|_| Err(io::Error::other("the storage panicked")));
                tray = self.lock();
                if tray.end(token, result) && tray.ended.len() == 1 {
                    self.signal();
                }
            } else if tray.closing {
                return;
            } else {
                tray.idle = tray.idle.saturating_add(1);
                tray = self.news.wait(tray).unwrap_or_else(PoisonError::into_inner);
                tray.idle = tray.idle.saturating_sub(1);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.cancel(&|_| true);
        self.shared.lock().closing = true;
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of the storage are caught by the thread.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
