//! `Backend`: what the guest's serial port is connected to on the host.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::stdin::Stdin;
use crate::config::SerialMode;
use crate::messages;
use crate::output_file;
use crate::sink::Sink;

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
    #[error("--serial: {path} exists and is {what}; choose another path, or remove it if nobody needs it")]
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

/// A listening socket that takes its path along when it goes.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// What was at the path when it was bound: somebody may have put another socket there since.
    identity: Option<(u64, u64)>,
}

/// Device and inode of what is at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path) != self.identity {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl Backend {
    /// Opens what `mode` names, with the output that belongs to it.
    pub(super) fn open(mode: &SerialMode) -> Result<(Self, Sink), OpenError> {
        let start = |fd| Sink::start("console", fd).map_err(host("the writer thread"));
        match mode {
            SerialMode::Null => Ok((Self::OutputOnly, Sink::nowhere())),
            SerialMode::Stdio => {
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                let output = start(Some(stdout.map_err(host("a copy of standard output"))?))?;
                Ok((Self::Stdin(Stdin::open().map_err(host("raw mode"))?), output))
            }
            SerialMode::File(path) => {
                let file = output_file::create(path)
                    .map_err(|source| OpenError::Path { path: path.clone(), source })?;
                Ok((Self::OutputOnly, start(Some(file.into()))?))
            }
            SerialMode::Pty => {
                let (master, slave) = open_pty().map_err(|errno| host("a pseudo-terminal")(errno.into()))?;
                let copy = master.try_clone().map_err(host("a copy of the pseudo-terminal"))?;
                Ok((Self::Pty { master, _slave: slave }, start(Some(copy))?))
            }
            SerialMode::Unix(path) => {
                let listener = listen(path)?;
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
            Self::Unix { listener, client: None, accepting: true } => Some(listener.socket.as_fd()),
            _ => None,
        }
    }

    /// Takes the next client in; the output goes to it from now on.
    pub(super) fn accept(&mut self, output: &Sink) {
        let Self::Unix { listener, client, accepting } = self else { return };
        let accepted = listener.socket.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
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
                tracing::error!(%error, "the serial port takes no more clients");
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
fn open_pty() -> Result<(OwnedFd, OwnedFd), Errno> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let slave = nix::fcntl::open(name.as_str(), flags, nix::sys::stat::Mode::empty())?;
    let mut mode = tcgetattr(&slave)?;
    cfmakeraw(&mut mode);
    tcsetattr(&slave, SetArg::TCSANOW, &mode)?;
    messages::tell(format_args!("serial port: {name}\n"));
    Ok((master.into(), slave))
}

/// Listens at `path`, which only this user can connect to. A socket that nobody listens on any more is replaced.
fn listen(path: &Path) -> Result<Listener, OpenError> {
    let failed = |source| OpenError::Path { path: path.into(), source };
    let occupied = |what| Err(OpenError::Occupied { path: path.into(), what });
    // Two that start at once must not take each other's socket for a stale one. Where the directory cannot be locked,
    // that is left to chance.
    let directory = path.parent().and_then(|parent| File::open(parent).ok());
    let _turn = directory.and_then(|directory| Flock::lock(directory, FlockArg::LockExclusive).ok());
    if let Ok(metadata) = path.symlink_metadata() {
        if !metadata.file_type().is_socket() {
            return occupied("not a socket");
        }
        // Not connected to where that can be helped: whoever listens would take this process for a client.
        if is_bound(path) || UnixStream::connect(path).is_ok() {
            return occupied(IN_USE);
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    // The mode of a socket file is what umask leaves of 0777.
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(umask);
    let socket = match bound {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return occupied(IN_USE),
        bound => bound.map_err(failed)?,
    };
    let listener = Listener { socket, path: path.into(), identity: identity(path) };
    listener.socket.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Why a socket is left alone.
const IN_USE: &str = "in use by another program";

/// The offset with which preadv2 reads like read.
const CURRENT_POSITION: u64 = u64::MAX;

/// Whether some process of this network namespace has bound a socket under this very name.
fn is_bound(path: &Path) -> bool {
    // The name is the rest of the line after seven columns (proc_net_unix(5)).
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let Some(path) = path.to_str() else { return false };
    sockets.lines().any(|line| line.strip_suffix(path).is_some_and(|columns| columns.ends_with(' ')))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vmm-console-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_goes_with_the_listener() {
        let path = scratch("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(OpenError::Occupied { what: IN_USE, .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_left_alone() {
        let path = scratch("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(OpenError::Occupied { what: "not a socket", .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_socket_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let path = scratch("private-socket");
        let _listener = listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
    }
}
