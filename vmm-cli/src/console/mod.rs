//! `Console`: the host's end of the guest's serial port.
//!
//! Output goes into a bounded buffer that a writer thread empties, so that no vCPU ever waits for a terminal, a pipe
//! or a disk. Input is read by the event loop, at most as much as the guest's FIFO takes.

mod backend;
mod escape;
mod output;
mod terminal;

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use backend::{Backend, Received};
pub use backend::OpenError;
use escape::{Escape, Keys};
use output::Output;
pub use terminal::restore_now;

use crate::config::SerialMode;
use vmm_devices::legacy::Serial;

/// Bytes of the guest's input FIFO, and of what is read ahead for it.
const CHUNK: usize = 64;

/// How long the end of the program waits for output that makes no progress.
const FLUSH_PATIENCE: Duration = Duration::from_millis(500);

/// What the keys of the user ask of the monitor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the machine.
    Quit,
}

/// The open console.
pub struct Console {
    backend: Backend,
    output: Output,
    drained: Arc<EventFd>,
    /// Input that is read but that the FIFO had no room for.
    pending: Vec<u8>,
    keys: Option<Keys>,
}
