//! `Listener`: a listening Unix socket that is its owner's alone, and that takes its path along when it goes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// Longest path of a Unix socket in bytes: `sun_path` without its closing NUL (unix(7)).
pub(crate) const MAX_PATH: usize = 107;

/// Why a socket is left alone.
const IN_USE: &str = "in use by another program";

/// Why nobody can listen at a path. All are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something is there, and it is not a socket that was left behind.
    #[error("{path} exists and is {what}; choose another path, or remove it if nobody needs it")]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
}

/// The paths of all listeners, for a process that ends without dropping them.
static BOUND: Mutex<Vec<Bound>> = Mutex::new(Vec::new());

/// A path, and what was there when it was bound: somebody may have put another socket there since.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Bound {
    fn remove(&self) {
        if identity(&self.path) != self.identity {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn bound() -> MutexGuard<'static, Vec<Bound>> {
    BOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Device and inode of what is at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Removes the paths of all listeners now: the process is about to end without dropping them.
pub(crate) fn remove_now() {
    bound().drain(..).for_each(|bound| bound.remove());
}

/// A listening socket. Dropped, it removes its path, if that still leads to it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    bound: Bound,
}

impl Listener {
    /// Listens at `path`, with mode 0600 from the moment the path exists. A socket that nobody listens on any more is
    /// replaced.
    ///
    /// # Errors
    /// [`ListenError`]; what was at `path` is untouched then.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Path { path: path.into(), source };
        let occupied = |what| Err(ListenError::Occupied { path: path.into(), what });
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
        match listen_at(path) {
            Err(Errno::EADDRINUSE) => occupied(IN_USE),
            listener => listener.map_err(|errno| failed(errno.into())),
        }
    }

    /// The same socket for somebody else, who leaves its flags and its path alone.
    pub(crate) fn share(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }

    /// The next client, whose stream does not block; `WouldBlock` if there is none.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut all = bound();
        // Whoever has taken it out already removes it.
        if let Some(at) = all.iter().position(|bound| *bound == self.bound) {
            all.remove(at).remove();
        }
    }
}

fn listen_at(path: &Path) -> Result<Listener, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux gives the path the mode that the socket has when it is bound: there is no moment at which others can connect,
    // and the umask, which all threads share, stays as it is.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let listener = Listener {
        socket: UnixListener::from(socket),
        bound: Bound { path: path.into(), identity: identity(path) },
    };
    bound().push(listener.bound.clone());
    listen(&listener.socket, Backlog::MAXALLOWABLE)?;
    Ok(listener)
}

/// Whether some process of this network namespace has bound a socket under this very name.
fn is_bound(path: &Path) -> bool {
    // The name is the rest of the line after seven columns (proc_net_unix(5)).
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let Some(path) = path.to_str() else { return false };
    sockets.lines().any(|line| line.strip_suffix(path).is_some_and(|columns| columns.ends_with(' ')))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        (directory, path)
    }

    #[test]
    fn fault_c11_a_socket_that_was_left_behind_is_replaced_and_goes_with_the_listener() {
        let (_directory, path) = scratch();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::Occupied { what: IN_USE, .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn fault_c11_a_file_in_the_place_of_the_socket_is_left_alone() {
        let (_directory, path) = scratch();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::Occupied { what: "not a socket", .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn fault_d7_a_socket_is_private_and_its_directory_untouched() {
        let (directory, path) = scratch();
        let before = directory.path().metadata().unwrap().permissions();
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(directory.path().metadata().unwrap().permissions(), before);
    }

    #[test]
    fn the_socket_that_somebody_else_has_put_there_since_stays() {
        let (_directory, path) = scratch();
        let first = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_path_without_a_directory_is_refused_with_the_kernels_answer() {
        let error = Listener::bind(Path::new("/nowhere/socket")).unwrap_err();
        assert_eq!(error.to_string(), "cannot listen at /nowhere/socket");
        let ListenError::Path { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }
}
