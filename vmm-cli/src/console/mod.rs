//! `Console`: the host's end of the guest's serial port.
//!
//! Output goes through a [`Sink`], so that no vCPU ever waits for a terminal, a pipe or a disk. Input is read by the event loop, at most as much as the guest's FIFO takes.

mod backend;
mod escape;
mod terminal;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_devices::legacy::Serial;

use backend::Backend;
pub(crate) use backend::OpenError;
use escape::{Escape, HELP, Keys};
pub(crate) use terminal::{is_raw, restore_now};

use crate::config::SerialMode;
use crate::sink::Sink;

/// Bytes that are read ahead for the guest's FIFO, which takes as many.
const CHUNK: usize = 64;

/// The open console. Dropped, it has written what can be written and the terminal is as it was.
#[derive(Debug)]
pub(crate) struct Console {
    backend: Backend,
    output: Sink,
    /// Signalled when the guest's FIFO is empty.
    drained: Arc<EventFd>,
    /// Input that was read and that the FIFO had no room for yet.
    pending: Vec<u8>,
    /// Present while a user types on a terminal.
    keys: Option<Keys>,
}

impl Console {
    /// Opens the console that `mode` names.
    pub(crate) fn open(mode: &SerialMode) -> Result<Self, OpenError> {
        let drained = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| OpenError::Host { what: "an eventfd", source: errno.into() })?;
        let (backend, output) = Backend::open(mode)?;
        let keys = backend.raw_mode().map(|_| Keys::default());
        Ok(Self { backend, output, drained: Arc::new(drained), pending: Vec::new(), keys })
    }

    /// A sink for a device, which never blocks.
    pub(crate) fn output(&self) -> Box<dyn Write + Send> {
        Box::new(self.output.pen())
    }

    /// To be called by the serial port when its input FIFO is empty.
    pub(crate) fn on_drained(&self) -> Box<dyn Fn() + Send + Sync> {
        let drained = Arc::clone(&self.drained);
        // Fails when the counter is full: then the event loop has been told often enough.
        Box::new(move || {
            let _ = drained.write(1);
        })
    }

    /// Readable when the guest's FIFO has become empty.
    pub(crate) fn drained(&self) -> BorrowedFd<'_> {
        self.drained.as_fd()
    }

    /// What to wait for on the source of the input: bytes, or, while those that were read before still wait for the
    /// guest, only that a client hangs up. (A pipe that has hung up may still hold bytes, and must wait its turn.)
    pub(crate) fn input(&self) -> Option<PollFd<'_>> {
        let fd = self.backend.input()?;
        if self.pending.is_empty() {
            Some(PollFd::new(fd, PollFlags::POLLIN))
        } else {
            self.backend.is_client().then(|| PollFd::new(fd, PollFlags::empty()))
        }
    }

    /// Readable when a client wants to connect; absent while there can be none.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.backend.listener()
    }

    /// Takes a waiting client in.
    pub(crate) fn accept(&mut self) {
        self.backend.accept(&self.output);
    }

    /// What [`input`](Self::input) waited for has come: reads what is there and offers it to the guest. Returns
    /// whether the user asked for the end of the machine.
    pub(crate) fn receive(&mut self, serial: &Serial) -> bool {
        let mut buffer = [0; CHUNK];
        let Some(fd) = self.backend.input() else { return false };
        let hung_up = !self.pending.is_empty();
        let received = if hung_up { None } else { backend::receive(fd, &mut buffer) };
        let Some(bytes) = received else {
            self.backend.end_of_input(&self.output);
            return false;
        };
        let Some(keys) = &mut self.keys else {
            self.pending.extend(bytes);
            self.feed(serial);
            return false;
        };
        let escapes = keys.filter(bytes, &mut self.pending);
        if escapes.contains(&Escape::Help) {
            // The writer takes everything.
            let _ = self.output.pen().write_all(HELP.as_bytes());
        }
        self.feed(serial);
        escapes.contains(&Escape::Quit)
    }

    /// The guest's FIFO is empty: offers what waits.
    pub(crate) fn on_fifo_empty(&mut self, serial: &Serial) {
        // Nothing to read means that somebody else has been woken for it.
        let _ = self.drained.read();
        self.feed(serial);
    }

    /// After the process was stopped and continued.
    pub(crate) fn continued(&self) {
        if let Some(raw) = self.backend.raw_mode() {
            raw.renew();
        }
    }

    fn feed(&mut self, serial: &Serial) {
        let taken = serial.input(&self.pending);
        self.pending.drain(..taken);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let dropped = self.output.flush();
        if dropped != 0 {
            tracing::warn!(bytes = dropped, "serial output was dropped: its reader was too slow or gone");
        }
    }
}
