//! `Console`: the host's end of a port of the guest: its serial port, or its virtio console.
//!
//! Output goes through a [`Sink`], so that no vCPU ever waits for a terminal, a pipe or a disk. Input is read by the event loop, at most as much as the guest's FIFO takes.

mod ahead;
mod all;
mod backend;
mod escape;
mod outlet;
mod outside;
mod port;
mod stdin;
mod terminal;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use ahead::Ahead;
pub(crate) use all::Consoles;
use backend::Backend;
pub(crate) use backend::OpenError;
use escape::{Escape, HELP, INTERRUPT_HINT, Keys};
pub(crate) use outlet::{Outlet, Outlets};
pub(crate) use outside::set_outside;
pub(crate) use port::GuestPort;
use port::PortKind;
use stdin::Stdin;
pub(crate) use terminal::{is_raw, restore_now};

use crate::config::SerialMode;
use crate::sink::Sink;

/// Bytes that are read ahead for the guest's FIFO, which takes as many.
const CHUNK: usize = 64;

/// How often a process in the background looks for its terminal.
const LOOK_FOR_TERMINAL: Duration = Duration::from_millis(500);

/// The open console. Dropped, it has written what can be written and the terminal is as it was.
#[derive(Debug)]
pub(crate) struct Console {
    kind: PortKind,
    backend: Backend,
    output: Sink,
    /// Signalled when the guest's FIFO is empty.
    drained: Arc<EventFd>,
    /// Input that was read and that the FIFO had no room for yet.
    pending: Ahead,
    /// Present while a user types on a terminal.
    keys: Option<Keys>,
}

impl Console {
    /// Opens the console of a port that `mode` names.
    pub(crate) fn open(mode: &SerialMode, kind: PortKind) -> Result<Self, OpenError> {
        let drained = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| OpenError::Host { what: "an eventfd", source: errno.into() })?;
        let (backend, output) = Backend::open(mode, kind)?;
        let keys = backend.stdin().is_some_and(Stdin::has_terminal).then(Keys::default);
        let pending = Ahead::new(Instant::now());
        Ok(Self { kind, backend, output, drained: Arc::new(drained), pending, keys })
    }

    /// What a port of the guest is connected to.
    pub(crate) fn outlet(&self) -> Outlet {
        Outlet { pen: self.output.pen(), drained: Arc::clone(&self.drained) }
    }

    /// Readable when the guest's FIFO has become empty.
    pub(crate) fn drained(&self) -> BorrowedFd<'_> {
        self.drained.as_fd()
    }

    /// What to wait for on the source of the input. While what was read before still waits for the guest, a source is
    /// left alone, but for two: a terminal is read on for a while, because its keys may be for the monitor, and a client is
    /// watched for its hang-up. (A pipe that has hung up may still hold bytes, and must wait its turn.)
    pub(crate) fn input(&self) -> Option<PollFd<'_>> {
        match self.backend.input().filter(|_| self.reads_on()) {
            Some(fd) => Some(PollFd::new(fd, PollFlags::POLLIN)),
            // A hang-up is reported without being asked for.
            None => self.backend.client().map(|fd| PollFd::new(fd, PollFlags::empty())),
        }
    }

    /// Whether more input can be taken.
    fn reads_on(&self) -> bool {
        self.pending.bytes.is_empty() || self.keys.is_some() && self.pending.takes_keys(Instant::now())
    }

    /// Readable when a client wants to connect; absent while there can be none.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.backend.listener()
    }

    /// Takes a waiting client in.
    pub(crate) fn accept(&mut self) {
        self.backend.accept(&self.output);
    }

    /// What [`input`](Self::input) waited for has come: reads what is there and offers it to the guest, if there is
    /// one now. Returns whether the user asked for the end of the machine.
    pub(crate) fn receive(&mut self, port: Option<&dyn GuestPort>) -> bool {
        let mut buffer = [0; CHUNK];
        let Some(fd) = self.backend.input().filter(|_| self.reads_on()) else {
            self.backend.hang_up(&self.output, &mut self.pending.bytes);
            self.offer(port);
            return false;
        };
        let Some(bytes) = backend::receive(fd, &mut buffer) else {
            self.backend.end_of_input();
            return false;
        };
        if self.backend.is_pty() {
            // Nothing tells when its user has changed the size. Who has, types next.
            self.tell_size(port);
        }
        let escapes = match &mut self.keys {
            Some(keys) => {
                let escapes = keys.filter(bytes, &mut self.pending.bytes);
                self.pending.forget_unread_keys(Instant::now());
                escapes
            }
            None => {
                self.pending.bytes.extend(bytes);
                Vec::new()
            }
        };
        for escape in &escapes {
            let text = match escape {
                Escape::Help => HELP,
                Escape::Interrupt => INTERRUPT_HINT,
                Escape::Quit => continue,
            };
            // The writer takes everything.
            let _ = self.output.pen().write_all(text.as_bytes());
        }
        self.offer(port);
        escapes.contains(&Escape::Quit)
    }

    /// The guest's FIFO is empty: offers what waits.
    pub(crate) fn on_fifo_empty(&mut self, port: &dyn GuestPort) {
        // Nothing to read means that somebody else has been woken for it.
        let _ = self.drained.read();
        self.offer(Some(port));
    }

    /// Tells the guest how large the terminal is, if there is one.
    pub(crate) fn tell_size(&self, port: Option<&dyn GuestPort>) {
        if let (Some(port), Some(size)) = (port, self.backend.size()) {
            port.resize(size);
        }
    }

    /// After the process was stopped and continued: the shell has had the terminal meanwhile.
    pub(crate) fn continued(&mut self) {
        self.pending.wait_anew(Instant::now());
        if let Some(stdin) = self.backend.stdin_mut() {
            stdin.take_terminal();
        }
        self.look_for_terminal();
    }

    /// Looks whether the terminal is ours. To be called before each wait.
    pub(crate) fn look_for_terminal(&mut self) {
        let Some(stdin) = self.backend.stdin_mut() else { return };
        stdin.look();
        if self.keys.is_none() && stdin.has_terminal() {
            self.keys = Some(Keys::default());
        }
    }

    /// How long a wait may last: for ever, but for a process in the background of its terminal, which nothing tells that
    /// it has come to the foreground, and for a terminal that waits for the guest to read.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let away = self.backend.stdin().filter(|stdin| stdin.is_away()).map(|_| LOOK_FOR_TERMINAL);
        let full = self.keys.as_ref().and_then(|_| self.pending.patience(Instant::now()));
        [away, full].into_iter().flatten().min()
    }

    /// Gives the guest as much of what waits as it takes.
    fn offer(&mut self, port: Option<&dyn GuestPort>) {
        let taken = port.map_or(0, |port| port.input(&self.pending.bytes));
        self.pending.take(taken, Instant::now());
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let dropped = self.output.flush();
        if dropped != 0 {
            tracing::warn!(
                bytes = dropped,
                "output of the {} was dropped: its reader was slow, gone or never there, or its file full",
                self.kind.name()
            );
        }
    }
}
