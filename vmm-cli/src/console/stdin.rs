//! `Stdin`: standard input as a source of the guest's input. It must never stop or block the event loop.
//!
//! A terminal belongs to the guest only while this process is in its foreground: a background process that reads it, or
//! changes its mode, is stopped by the kernel. In raw mode its reads never wait (`VMIN` 0). A pipe is opened once more,
//! as a description of our own that may be non-blocking, because another process that shares the inherited one may
//! have been faster.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::backend::size_of;
use super::port::TerminalSize;
use super::terminal::{self, RawMode};

/// The name of the inherited descriptor, for opening what it refers to again.
const INHERITED: &str = "/proc/self/fd/0";

/// Standard input, until it ends.
#[derive(Debug)]
pub(super) struct Stdin {
    inherited: io::Stdin,
    reopened: Option<OwnedFd>,
    is_terminal: bool,
    open: bool,
    /// Held while the guest has the terminal.
    raw: Option<RawMode>,
    /// The terminal is somebody else's at present.
    away: bool,
}

impl Stdin {
    /// Takes standard input; a terminal in whose foreground this process is goes into raw mode.
    pub(super) fn open() -> io::Result<Self> {
        let inherited = io::stdin();
        let is_terminal = inherited.is_terminal();
        let raw = RawMode::enter()?;
        let away = is_terminal && raw.is_none();
        Ok(Self { inherited, reopened: reopened_pipe(), is_terminal, open: true, raw, away })
    }

    /// Where input comes from now, if it comes.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.reopened.as_ref().map_or_else(|| self.inherited.as_fd(), AsFd::as_fd);
        (self.open && !self.away).then_some(fd)
    }

    /// Whether the guest has a terminal.
    pub(super) fn has_terminal(&self) -> bool {
        self.raw.is_some()
    }

    /// How large the terminal is: the one that is typed on, or else the one that is written to.
    pub(super) fn size(&self) -> Option<TerminalSize> {
        size_of(self.inherited.as_fd()).or_else(|| size_of(io::stdout().as_fd()))
    }

    /// Whether the terminal is somebody else's at present. Nothing tells a process that it comes to the foreground.
    pub(super) fn is_away(&self) -> bool {
        self.away
    }

    /// Looks whose the terminal is; takes it, or takes it back, if it is ours again.
    pub(super) fn look(&mut self) {
        if !self.is_terminal {
            return;
        }
        let was_away = std::mem::replace(&mut self.away, !terminal::is_foreground());
        if was_away && !self.away {
            self.take_terminal();
        }
    }

    /// Sets raw mode, whatever the shell has done to the terminal meanwhile.
    pub(super) fn take_terminal(&mut self) {
        let taken = match &self.raw {
            Some(raw) => raw.renew(),
            None => RawMode::enter().map(|raw| self.raw = raw),
        };
        if let Err(error) = taken {
            tracing::warn!(%error, "cannot set the terminal to raw mode");
        }
    }

    /// A read has given nothing: is that the end? Not for a terminal that has not hung up, and not for one that was taken
    /// away a moment ago.
    pub(super) fn end(&mut self) {
        self.look();
        let mut fds = [PollFd::new(self.inherited.as_fd(), PollFlags::empty())];
        let hung_up = poll(&mut fds, PollTimeout::ZERO) != Ok(0);
        self.open = self.is_terminal && !hung_up;
    }
}

/// A description of our own of the pipe on standard input, if it is one and the host lets us.
fn reopened_pipe() -> Option<OwnedFd> {
    let is_pipe = std::fs::metadata(INHERITED).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let open = || File::options().read(true).custom_flags(libc::O_NONBLOCK).open(INHERITED);
    is_pipe.then(open)?.ok().map(Into::into)
}
