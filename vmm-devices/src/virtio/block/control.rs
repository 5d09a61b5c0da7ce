//! `Control`: what others do with a queue of a disk that runs.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::Told;
use crate::Handler;
use crate::sync::lock;
use crate::virtio::QueueStopped;
use crate::virtio::ending::Ending;

/// What a queue is asked for from outside, bit by bit.
pub(super) const CANCEL: u8 = 1;
pub(super) const FLUSH: u8 = 2;
pub(super) const SETTLE: u8 = 4;

/// What others do with a queue that runs.
pub(super) struct Control {
    /// Rung after anything here has changed.
    pub(super) bell: Arc<EventFd>,
    pub(super) asked: AtomicU8,
    /// Whoever waits until what is in flight has ended, as [`SETTLE`] says.
    pub(super) settling: Mutex<Vec<Sender<Infallible>>>,
    pub(super) ending: Arc<Ending>,
    /// Those of the queue, which keep it alive.
    pub(super) handlers: Mutex<Vec<Handler>>,
    /// Dropped when the queue has let the storage go that the disk has lost.
    pub(super) losing: Mutex<Option<Arc<Told>>>,
}

impl Control {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            asked: AtomicU8::new(0),
            settling: Mutex::default(),
            ending: Ending::new(),
            handlers: Mutex::default(),
            losing: Mutex::default(),
        }))
    }

    /// Ends the queue when what is in flight has ended; `done` is called then, or at once if it has ended already.
    pub(super) fn stop(&self, done: QueueStopped) {
        if self.ending.want(done) {
            self.ring();
        }
    }

    /// Has requests end soon whose memory is to go.
    pub(super) fn cancel(&self) {
        self.ask(CANCEL);
    }

    /// Makes durable what has been written so far.
    pub(super) fn flush(&self) {
        self.ask(FLUSH);
    }

    /// Drops `share` when all has ended that is in flight now.
    pub(super) fn settle(&self, share: Sender<Infallible>) {
        lock(&self.settling).push(share);
        self.ask(SETTLE);
    }

    /// The disk has lost its storage: the queue lets it go when what is in flight has ended, and drops `told`.
    pub(super) fn lose(&self, told: Arc<Told>) {
        *lock(&self.losing) = Some(told);
        self.ring();
    }

    fn ask(&self, what: u8) {
        self.asked.fetch_or(what, Ordering::Release);
        self.ring();
    }

    /// Has the queue take a turn.
    pub(super) fn ring(&self) {
        // Its counter cannot be full.
        let _ = self.bell.write(1);
    }

    /// Whether a turn is due for another reason than the driver's.
    pub(super) fn wants_a_turn(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != 0 || self.is_stopping()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.ending.is_wanted()
    }

    /// Ends the handlers without waiting. The queue goes with the last call that is running.
    pub(super) fn retire(&self) {
        let handlers = std::mem::take(&mut *lock(&self.handlers));
        handlers.into_iter().for_each(Handler::retire);
    }

    /// Ends the handlers, and waits for a call that is running if that can be.
    pub(super) fn remove(&self) {
        let handlers = std::mem::take(&mut *lock(&self.handlers));
        for handler in handlers {
            // Refused: it ends all the same.
            let _ = handler.remove();
        }
    }
}
