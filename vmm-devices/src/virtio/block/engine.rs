//! `Engine`: how requests that were checked reach the host, and how they come back.
//!
//! An engine owns a request, and with it the pins of the guest memory in it, until the host is done with it. Requests may end
//! in any order. Each is transferred whole: what the host transfers in pieces is put together here, and a file that ends
//! early is an error.

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::io;
use std::sync::Arc;

use vmm_memory::PinnedBuffers;

use crate::worker::Wakeup;

/// What is done with a range of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the image to the buffers.
    Read,
    /// From the buffers to the image.
    Write,
    /// What was written before, and has ended, is made durable.
    Flush,
    /// The contents are not needed any more; they read as zero, or as before.
    Discard,
    /// The contents become zero; the host may give up their place if `unmap`.
    WriteZeroes {
        /// Whether it may.
        unmap: bool,
    },
}

/// What an engine is asked for; the range is inside of the image as it was when the request was checked.
#[derive(Debug)]
pub struct Request {
    /// By what the asker knows it: unique among those in flight.
    pub token: u16,
    /// What is to be done.
    pub operation: Operation,
    /// Whether it ends only when what it changes is durable.
    pub durable: bool,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range; of a read or a write, as many as the buffers have.
    pub length: u64,
    /// What is read to or written from.
    pub buffers: PinnedBuffers,
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// Of the request.
    pub token: u16,
    /// What came of it.
    pub result: io::Result<()>,
}

/// Gives requests to the host. One engine serves one queue, on one thread.
pub trait Engine: Send {
    /// Takes a request, for the next [`submit`](Self::submit). There are never more in flight than the engine was made for.
    fn push(&mut self, request: Request);

    /// Gives to the host what was pushed. Does not wait for the host's disk.
    ///
    /// # Errors
    /// The host takes nothing for the moment: to be tried again after some requests have ended, or never. Nothing is lost.
    fn submit(&mut self) -> io::Result<()>;

    /// Puts what has ended into `ended`. After [`submit`](Self::submit), and when [`wakeup`](Self::wakeup) says so.
    ///
    /// # Errors
    /// As of [`submit`](Self::submit), for requests that need another step. What has ended is in `ended` all the same.
    fn reap(&mut self, ended: &mut Vec<Completion>) -> io::Result<()>;

    /// How many were pushed and have not been reaped.
    fn in_flight(&self) -> usize;

    /// Has those in flight that are `concerned` end soon, as far as the host can be asked for that. They are reaped as ever.
    fn cancel(&mut self, concerned: &dyn Fn(&Request) -> bool);

    /// What a worker waits for: that something has ended, or that the engine was [`cancel`](Self::cancel)led.
    fn wakeup(&self) -> Arc<dyn Wakeup>;
}

/// The error of a transfer that came to nothing before its end: the image ends there.
pub(super) fn ended_early(operation: Operation, offset: u64) -> io::Error {
    let kind = match operation {
        Operation::Read => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::WriteZero,
    };
    io::Error::new(kind, format!("the image ends before offset {offset}"))
}
