//! `Backend`: what the guest's serial port is connected to on the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::output::Output;
use super::terminal::RawMode;
use crate::config::SerialMode;

/// Why a console cannot be opened. All but [`OpenError::Host`] are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or socket cannot be made.
    #[error("--serial: cannot open {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something is at the path of the socket, and it is not a socket that was left behind.
    #[error("--serial: {path} exists and is {what}; remove it or choose another path")]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The host lacks what every console needs: a descriptor, a thread, a pseudo-terminal.
    #[error("cannot set up the console: {what}")]
    Host {
        /// What was being made.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Host { what, source }
}

/// The host's end, opened.
#[derive(Debug)]
pub(super) enum Backend {
    /// No input.
    OutputOnly,
    /// Standard input, until it ends.
    Stdin {
        /// Whether it has not ended yet.
        open: bool,
        /// Held while the guest has the terminal.
        raw: Option<RawMode>,
    },
    /// The master of a pseudo-terminal.
    Pty {
        master: OwnedFd,
        /// Kept open, so that the master does not hang up when its user leaves.
        _slave: OwnedFd,
    },
    /// A listening socket and its client of the moment.
    Unix { listener: Listener, client: Option<UnixStream> },
}

/// A listening socket that takes its path along when it goes.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl Backend {
    /// Opens what `mode` names, with the output that belongs to it.
    pub(super) fn open(mode: &SerialMode) -> Result<(Self, Output), OpenError> {
        let start = |fd| Output::start(fd).map_err(host("the writer thread"));
        match mode {
            SerialMode::Null => Ok((Self::OutputOnly, Output::nowhere())),
            SerialMode::Stdio => {
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                let output = start(Some(stdout.map_err(host("a copy of standard output"))?))?;
                let raw = RawMode::enter().map_err(host("raw mode"))?;
                // A background process that reads its terminal is stopped.
                let open = raw.is_some() || !io::IsTerminal::is_terminal(&io::stdin());
                Ok((Self::Stdin { open, raw }, output))
            }
            SerialMode::File(path) => {
                let file = open_file(path).map_err(|source| OpenError::Path { path: path.clone(), source })?;
                Ok((Self::OutputOnly, start(Some(file.into()))?))
            }
            SerialMode::Pty => {
                let (master, slave) = open_pty().map_err(|errno| host("a pseudo-terminal")(errno.into()))?;
                let copy = master.try_clone().map_err(host("a copy of the pseudo-terminal"))?;
                Ok((Self::Pty { master, _slave: slave }, start(Some(copy))?))
            }
            SerialMode::Unix(path) => {
                let listener = listen(path)?;
                Ok((Self::Unix { listener, client: None }, start(None)?))
            }
        }
    }

    /// Where input comes from now, if it comes.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stdin { open: true, .. } => Some(STDIN),
            Self::Pty { master, .. } => Some(master.as_fd()),
            Self::Unix { client: Some(client), .. } => Some(client.as_fd()),
            _ => None,
        }
    }

    /// Where the next client knocks, while there is none.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unix { listener, client: None } => Some(listener.socket.as_fd()),
            _ => None,
        }
    }

    /// Takes the next client in; its output goes to it from now on.
    pub(super) fn accept(&mut self, output: &Output) {
        let Self::Unix { listener, client } = self else { return };
        let accepted = listener.socket.accept().and_then(|(stream, _)| {
            let copy = stream.try_clone()?;
            Ok((stream, copy))
        });
        match accepted {
            Ok((stream, copy)) => {
                output.connect(copy.into());
                *client = Some(stream);
            }
            Err(error) => tracing::warn!(%error, "cannot accept a client of the serial port"),
        }
    }

    /// The source of the input has ended.
    pub(super) fn end_of_input(&mut self, output: &Output) {
        match self {
            Self::Stdin { open, .. } => *open = false,
            Self::Unix { client, .. } => {
                output.disconnect();
                *client = None;
            }
            Self::Pty { .. } | Self::OutputOnly => {}
        }
    }

    /// The raw mode that is held, if it is.
    pub(super) fn raw_mode(&self) -> Option<&RawMode> {
        match self {
            Self::Stdin { raw, .. } => raw.as_ref(),
            _ => None,
        }
    }
}
