//! The atomics and locks of this crate's protocols: the processor's, or loom's when a model is checked.

use std::time::Duration;

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering, fence},
};
#[cfg(not(loom))]
use rustix::thread::futex;
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering, fence},
};

/// Locks `mutex`; a panic of an earlier holder leaves the data of this crate usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An atomic word that a thread can sleep on: a futex.
///
/// `wait` sleeps only if the word still has the expected value, checked together with going to sleep, and not longer
/// than `limit`; it may also return for no reason. In a model time does not pass.
#[derive(Debug)]
pub(crate) struct WaitWord {
    word: AtomicU32,
    #[cfg(loom)]
    sleepers: (loom::sync::Mutex<()>, loom::sync::Condvar),
}

impl WaitWord {
    pub(crate) fn new(value: u32) -> Self {
        Self {
            word: AtomicU32::new(value),
            #[cfg(loom)]
            sleepers: (loom::sync::Mutex::new(()), loom::sync::Condvar::new()),
        }
    }

    #[cfg(not(loom))]
    pub(crate) fn wait(&self, expected: u32, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| futex::Timespec::try_from(limit).ok());
        // Woken, changed already, interrupted or too late: the caller looks at the word in any case.
        let _ = futex::wait(&self.word, futex::Flags::PRIVATE, expected, limit.as_ref());
    }

    #[cfg(not(loom))]
    pub(crate) fn wake(&self) {
        // Waking nobody is no error, and there is no other on a word of our own.
        let _ = futex::wake(&self.word, futex::Flags::PRIVATE, u32::MAX >> 1);
    }

    #[cfg(loom)]
    pub(crate) fn wait(&self, expected: u32, _limit: Option<Duration>) {
        let guard = self.sleepers.0.lock().unwrap();
        if self.word.load(Ordering::SeqCst) == expected {
            drop(self.sleepers.1.wait(guard).unwrap());
        }
    }

    #[cfg(loom)]
    pub(crate) fn wake(&self) {
        drop(self.sleepers.0.lock().unwrap());
        self.sleepers.1.notify_all();
    }
}

impl std::ops::Deref for WaitWord {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        &self.word
    }
}
