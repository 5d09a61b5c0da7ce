//! `Ending`: the end of a queue, which is asked for on one thread and comes on another.
//!
//! Lock order: the locks here are innermost; nobody is called under them.

use std::sync::{Arc, Mutex};

use super::device::{QueueStopped, Stopped};
use super::queue::QueueState;
use crate::sync::lock;

/// Who wants to know of the end of a queue, or that it has come.
pub(super) struct Ending(Mutex<End>);

enum End {
    NotYet,
    Wanted(QueueStopped),
    Come(QueueState),
}

impl Ending {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(End::NotYet)))
    }

    /// Has `done` called when the queue has ended; at once, if it has. Whether it has not.
    pub(super) fn want(&self, done: QueueStopped) -> bool {
        let mut end = lock(&self.0);
        if let End::Come(state) = *end {
            drop(end);
            done(state);
            return false;
        }
        *end = End::Wanted(done);
        true
    }

    /// Whether somebody waits for the end.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*lock(&self.0), End::Wanted(_))
    }

    /// The queue has ended and is not touched any more.
    pub(super) fn come(&self, state: QueueState) {
        let before = std::mem::replace(&mut *lock(&self.0), End::Come(state));
        if let End::Wanted(done) = before {
            done(state);
        }
    }
}

/// Calls `done` when all queues have ended: when the last of [`one`](Self::one) was called, and this is dropped.
pub(super) struct AllStopped(Arc<All>);

struct All {
    states: Mutex<Vec<QueueState>>,
    done: Mutex<Option<Stopped>>,
}

impl AllStopped {
    pub(super) fn new(done: Stopped) -> Self {
        Self(Arc::new(All { states: Mutex::default(), done: Mutex::new(Some(done)) }))
    }

    /// What one of the queues is to call.
    pub(super) fn one(&self) -> QueueStopped {
        let all = Arc::clone(&self.0);
        Box::new(move |state| lock(&all.states).push(state))
    }
}

impl Drop for All {
    fn drop(&mut self) {
        let done = lock(&self.done).take();
        let states = std::mem::take(&mut *lock(&self.states));
        if let Some(done) = done {
            done(states);
        }
    }
}

/// A handler of a queue had a bug.
#[derive(Debug, thiserror::Error)]
#[error("the handler of a queue panicked")]
pub(super) struct Panicked;
