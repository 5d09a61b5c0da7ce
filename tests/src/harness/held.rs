//! `Held`: what a monitor has of its host, counted before and after something that is to leave nothing behind.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{PATIENCE, Process, until};

/// Mappings that an allocator may make at any time.
const SLACK: usize = 4;

/// Descriptors, threads and mappings.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

impl Held {
    /// What `process` has now. A thread or a connection that is about to end may be among it.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn by(process: Process) -> Result<Self> {
        let (descriptors, mappings) = (process.descriptors()?, process.mappings()?);
        Ok(Self { descriptors, threads: process.tasks()?.len(), mappings })
    }

    /// Waits until `process` has no more than this. The thread of a request ends after its answer.
    ///
    /// # Errors
    ///
    /// It is gone, or has more for too long.
    pub fn is_all_of(self, process: Process) -> Result<()> {
        let mut now = self;
        let given_back = until(Instant::now() + PATIENCE, "what was taken", || {
            now = Self::by(process)?;
            let is_back = now.descriptors <= self.descriptors
                && now.threads <= self.threads
                && now.mappings <= self.mappings + SLACK;
            Ok(is_back.then_some(()))
        });
        given_back.with_context(|| format!("{now:?} after {self:?}"))
    }
}
