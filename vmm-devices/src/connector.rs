//! `Connector`: how a device comes to a stream socket of the host's, now and again.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Connects to the socket at one path, or to those beside it.
pub trait Connector: fmt::Debug + Send + Sync {
    /// What messages call the socket.
    fn path(&self) -> &Path;

    /// Connects to the socket, or, with a `port`, to that at the path with `_` and the port behind it. The one that is returned does not
    /// block.
    ///
    /// # Errors
    /// The kernel's. `WouldBlock`: there are too many already who wait to be accepted.
    fn connect(&self, port: Option<u32>) -> io::Result<UnixStream>;
}

/// Connects by the path, in a process whose threads may do that.
#[derive(Clone, Debug)]
pub struct ByPath(PathBuf);

impl ByPath {
    /// To the socket at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Connector for ByPath {
    fn path(&self) -> &Path {
        &self.0
    }

    fn connect(&self, port: Option<u32>) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.0);
        if let Some(port) = port {
            path.push(format!("_{port}"));
        }
        let address = UnixAddr::new(Path::new(&path))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        loop {
            match connect(fd.as_raw_fd(), &address) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        }
        Ok(UnixStream::from(fd))
    }
}

/// What mends it that `source` kept a [`Connector`] from connecting, to be said behind it; nothing, where nothing is known. `first` is
/// who has to be started.
pub(crate) fn connect_advice(source: &io::Error, first: &str) -> String {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ECONNREFUSED | libc::ENOTSOCK) => {
            format!(": start {first}")
        }
        Some(libc::EAGAIN) => ": others wait for it there; it has one machine at a time".into(),
        Some(libc::EACCES | libc::EPERM) => {
            ": let the user of the machine have the socket (`sudo setfacl -m u:$USER:rw PATH`)".into()
        }
        _ => String::new(),
    }
}
