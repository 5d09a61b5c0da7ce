//! `Backend`: what a port of the guest is connected to on the host.

use std::io::{self, IoSliceMut, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::port::{PortKind, TerminalSize};
use super::stdin::Stdin;
use crate::config::SerialMode;
use crate::listener::{ListenError, Listener};
use crate::messages;
use crate::output_file;
use crate::sink::CONSOLE;
use crate::sink::Sink;

/// Why a console cannot be opened. All but [`OpenError::Host`] are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be made.
    #[error("{flag}: cannot open {path}")]
    Path {
        /// Of the port.
        flag: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody can listen at the path of the socket.
    #[error("{flag}")]
    Socket {
        /// Of the port.
        flag: &'static str,
        /// Why not.
        #[source]
        source: ListenError,
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
    Stdin(Stdin),
    /// The master of a pseudo-terminal.
    Pty {
        master: OwnedFd,
        /// Kept open, so that the master does not hang up when its user leaves.
        _slave: OwnedFd,
    },
    /// A listening socket and its client of the moment.
    Unix {
        listener: Listener,
        client: Option<Client>,
        /// Whether clients are still taken in.
        accepting: bool,
    },
}

/// Who is connected to the socket.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    /// Whether more input may come: a client that has sent all it has may stay and read.
    sends: bool,
}

impl Backend {
    /// Opens what `mode` names, with the output that belongs to it.
    pub(super) fn open(mode: &SerialMode, kind: PortKind) -> Result<(Self, Sink), OpenError> {
        let flag = kind.flag();
        let start = |fd| Sink::start(&CONSOLE, fd).map_err(host("the writer thread"));
        match mode {
            SerialMode::Null => Ok((Self::OutputOnly, Sink::nowhere())),
            SerialMode::Stdio => {
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                let output = start(Some(stdout.map_err(host("a copy of standard output"))?))?;
                Ok((Self::Stdin(Stdin::open().map_err(host("raw mode"))?), output))
            }
            SerialMode::File(path) => {
                let file = output_file::create(path).map_err(|source| OpenError::Path {
                    flag,
                    path: path.clone(),
                    source,
                })?;
                Ok((Self::OutputOnly, start(Some(file.into()))?))
            }
            SerialMode::Pty => {
                let (master, slave) =
                    open_pty(kind).map_err(|errno| host("a pseudo-terminal")(errno.into()))?;
                let copy = master.try_clone().map_err(host("a copy of the pseudo-terminal"))?;
                Ok((Self::Pty { master, _slave: slave }, start(Some(copy))?))
            }
            SerialMode::Unix(path) => {
                let listener = Listener::bind(path).map_err(|source| OpenError::Socket { flag, source })?;
                Ok((Self::Unix { listener, client: None, accepting: true }, start(None)?))
            }
        }
    }

    /// Where input comes from now, if it comes.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stdin(stdin) => stdin.input(),
            Self::Pty { master, .. } => Some(master.as_fd()),
            Self::Unix { client: Some(Client { stream, sends: true }), .. } => Some(stream.as_fd()),
            _ => None,
        }
    }

    /// The client that may hang up, if there is one.
    pub(super) fn client(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unix { client: Some(client), .. } => Some(client.stream.as_fd()),
            _ => None,
        }
    }

    /// Where the next client knocks, while there is none.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unix { listener, client: None, accepting: true } => Some(listener.as_fd()),
            _ => None,
        }
    }

    /// Takes the next client in; the output goes to it from now on.
    pub(super) fn accept(&mut self, output: &Sink) {
        let Self::Unix { listener, client, accepting } = self else { return };
        let accepted = listener.accept().and_then(|stream| {
            let copy = stream.try_clone()?;
            Ok((stream, copy))
        });
        match accepted {
            Ok((stream, copy)) => {
                output.connect(copy.into());
                *client = Some(Client { stream, sends: true });
            }
            // Somebody who changed his mind.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                // The client still knocks: trying again at once would never end.
                *accepting = false;
                tracing::error!(%error, "a console takes no more clients");
            }
        }
    }

    /// The source of the input has ended.
    pub(super) fn end_of_input(&mut self) {
        match self {
            Self::Stdin(stdin) => stdin.end(),
            Self::Unix { client: Some(client), .. } => client.sends = false,
            Self::Unix { client: None, .. } | Self::Pty { .. } | Self::OutputOnly => {}
        }
    }

    /// The client has hung up: appends what it had sent to `input` and lets it go.
    pub(super) fn hang_up(&mut self, output: &Sink, input: &mut Vec<u8>) {
        let Self::Unix { client: taken, .. } = self else { return };
        let Some(client) = taken.take() else { return };
        output.disconnect();
        if client.sends {
            // No more than the socket held can come. An error ends it as the end does.
            let _ = (&client.stream).read_to_end(input);
        }
        // The writer may still wait for this client to read.
        let _ = client.stream.shutdown(Shutdown::Both);
    }

    /// Whether it is a pseudo-terminal of our own.
    pub(super) fn is_pty(&self) -> bool {
        matches!(self, Self::Pty { .. })
    }

    /// How large the terminal is, if it is one.
    pub(super) fn size(&self) -> Option<TerminalSize> {
        match self {
            Self::Stdin(stdin) => stdin.size(),
            Self::Pty { master, .. } => size_of(master.as_fd()),
            Self::OutputOnly | Self::Unix { .. } => None,
        }
    }

    /// Standard input, if that is what the guest has.
    pub(super) fn stdin(&self) -> Option<&Stdin> {
        match self {
            Self::Stdin(stdin) => Some(stdin),
            _ => None,
        }
    }

    /// As [`stdin`](Self::stdin).
    pub(super) fn stdin_mut(&mut self) -> Option<&mut Stdin> {
        match self {
            Self::Stdin(stdin) => Some(stdin),
            _ => None,
        }
    }
}

/// A pseudo-terminal whose slave passes every byte through; its name goes to standard error, where the user who asked
/// for it can read it.
fn open_pty(kind: PortKind) -> Result<(OwnedFd, OwnedFd), Errno> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let slave = nix::fcntl::open(name.as_str(), flags, nix::sys::stat::Mode::empty())?;
    let mut mode = tcgetattr(&slave)?;
    cfmakeraw(&mut mode);
    tcsetattr(&slave, SetArg::TCSANOW, &mode)?;
    messages::tell(format_args!("{}: {name}\n", kind.name()));
    Ok((master.into(), slave))
}

/// How large the terminal is that `fd` is; `None`: it is none.
pub(super) fn size_of(fd: BorrowedFd<'_>) -> Option<TerminalSize> {
    let size = rustix::termios::tcgetwinsize(fd).ok()?;
    Some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// The offset with which preadv2 reads like read.
const CURRENT_POSITION: u64 = u64::MAX;

/// Reads once; `None` is the end of the input, an empty slice that there is nothing after all.
pub(super) fn receive<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    // Another process may share the descriptor and have been faster: then a plain read would wait.
    let nowait = rustix::io::preadv2(
        fd,
        &mut [IoSliceMut::new(&mut *buffer)],
        CURRENT_POSITION,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    let read = match nowait.map_err(|errno| Errno::from_raw(errno.raw_os_error())) {
        Err(Errno::EOPNOTSUPP | Errno::ESPIPE | Errno::EINVAL | Errno::ENOSYS) => {
            nix::unistd::read(fd, &mut *buffer)
        }
        read => read,
    };
    match read {
        Ok(0) => None,
        Ok(count) => Some(&buffer[..count]),
        Err(Errno::EINTR | Errno::EAGAIN) => Some(&[]),
        // A terminal that hung up, a peer that reset the connection.
        Err(_) => None,
    }
}
