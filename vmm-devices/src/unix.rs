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

/// What mends it that `source` kept [`connect`] from connecting, to be said behind it; nothing, where nothing is known. `first` is who has to
/// be started.
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
