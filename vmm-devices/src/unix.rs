//! Unix sockets, as far as the standard library has no call for what is wanted of them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, socket};

/// Connects to `path` with a socket that does not block. `WouldBlock`: there are too many already who wait to be accepted.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    loop {
        match connect_to(fd.as_raw_fd(), &address) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    }
    Ok(UnixStream::from(fd))
}
