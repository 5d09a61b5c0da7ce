//! `Gone`: the engine of a queue whose disk has lost its storage: every request fails.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::engine::{Completion, Engine, Request};
use crate::worker::Wakeup;

/// What a request comes to.
pub(super) fn error() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the storage of the disk was taken away")
}

/// Without a thread or a descriptor of its own.
pub(super) struct Gone {
    pushed: Vec<u16>,
    /// Of the queue, which is rung for what was pushed.
    bell: Arc<EventFd>,
}

impl Gone {
    /// Rings `bell` when something was pushed.
    pub(super) fn new(bell: Arc<EventFd>) -> Self {
        Self { pushed: Vec::new(), bell }
    }
}

impl Engine for Gone {
    fn push(&mut self, request: Request) {
        self.pushed.push(request.token);
        // Its counter cannot be full.
        let _ = self.bell.write(1);
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) -> io::Result<()> {
        ended.extend(self.pushed.drain(..).map(|token| Completion { token, result: Err(error()) }));
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.pushed.len()
    }

    fn cancel(&mut self, _concerned: &dyn Fn(&Request) -> bool) {}

    fn wakeup(&self) -> Arc<dyn Wakeup> {
        self.bell.clone()
    }
}
