//! `Nursery`: the thread that starts threads for those that may not, and that tells of a violation.
//!
//! A thread has the filters of the one that has started it, and its own. So the nursery's table is the sum of all others, and it does
//! nothing else: no guest has anything to do with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_core::thread::{current_kind, spawn};

use super::kinds::NURSERY;
use super::violation;

type Task = Box<dyn FnOnce() + Send>;

/// The thread, for whoever asks it for something.
#[derive(Clone)]
pub(super) struct Nursery(Arc<Shared>);

struct Shared {
    tasks: Mutex<Vec<Task>>,
    /// Blocks: it is the thread's one wait.
    news: EventFd,
}

impl Nursery {
    /// Without its thread.
    pub(super) fn new() -> io::Result<Self> {
        let news = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared { tasks: Mutex::default(), news })))
    }

    /// Starts the thread, which is never joined: it ends with the process.
    pub(super) fn start(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        spawn(&NURSERY, NURSERY.name, move || shared.serve()).map(drop)
    }

    /// Has `task` done, which must not wait.
    pub(super) fn ask(&self, task: Task) {
        if current_kind().is_some_and(|kind| std::ptr::eq(kind, &raw const NURSERY)) {
            return task();
        }
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        // It fails when the counter is full: then the thread is awake.
        let _ = self.0.news.write(1);
    }

    /// What wakes it, by its number.
    pub(super) fn news(&self) -> RawFd {
        self.0.news.as_fd().as_raw_fd()
    }
}

impl Shared {
    fn serve(&self) {
        // The process keeps the descriptor open: nothing else is an error than a signal.
        loop {
            let _ = self.news.read();
            // First: whoever has the lock may be the one who is told of.
            violation::tell();
            let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            for task in tasks {
                task();
            }
        }
    }
}
