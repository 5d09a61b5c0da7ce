//! `Endpoint`: where the network benchmarks' server listens and their client connects: TCP, a Unix socket, or a virtio socket.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// How long a client waits for a server that says nothing: a guest may have died.
const SILENCE: Duration = Duration::from_secs(100);

/// A connection, whatever it goes over.
pub trait Stream: Read + Write + Send {
    /// The same connection once more.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    fn duplicate(&self) -> io::Result<Box<dyn Stream>>;

    /// The other side is not waited for any longer than this, at a time.
    ///
    /// # Errors
    ///
    /// There is no connection any more.
    fn limit(&self, time: Duration) -> io::Result<()>;

    /// The other side reads to an end; it may go on writing.
    ///
    /// # Errors
    ///
    /// There is no connection any more.
    fn end_writing(&self) -> io::Result<()>;
}

macro_rules! stream {
    ($type:ty) => {
        impl Stream for $type {
            fn duplicate(&self) -> io::Result<Box<dyn Stream>> {
                Ok(Box::new(self.try_clone()?))
            }

            fn limit(&self, time: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(time))?;
                self.set_write_timeout(Some(time))
            }

            fn end_writing(&self) -> io::Result<()> {
                self.shutdown(Shutdown::Write)
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);
stream!(VsockStream);

/// Written as `tcp:ADDRESS:PORT`, `unix:PATH`, `vsock:CID:PORT` or, for the port of a guest whose monitor has a socket, `guest:PORT:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
    /// A context and a port, as the kernel's sockets have them; who listens does so in its own context.
    Vsock(u32, u32),
    /// A port behind the socket of a monitor, which is asked to connect with a line (docs/vsock.md).
    Guest(u32, PathBuf),
}

/// What is written is none.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no tcp:ADDRESS:PORT, unix:PATH, vsock:CID:PORT or guest:PORT:PATH")]
pub struct UnknownEndpoint(String);

impl FromStr for Endpoint {
    type Err = UnknownEndpoint;

    fn from_str(text: &str) -> Result<Self, UnknownEndpoint> {
        let read = || {
            let (kind, rest) = text.split_once(':')?;
            let pair = || rest.split_once(':');
            Some(match kind {
                "tcp" => Self::Tcp(rest.parse().ok()?),
                "unix" => Self::Unix(rest.into()),
                "vsock" => Self::Vsock(pair()?.0.parse().ok()?, pair()?.1.parse().ok()?),
                "guest" => Self::Guest(pair()?.0.parse().ok()?, pair()?.1.into()),
                _ => return None,
            })
        };
        read().ok_or_else(|| UnknownEndpoint(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock(cid, port) => write!(f, "vsock:{cid}:{port}"),
            Self::Guest(port, path) => write!(f, "guest:{port}:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Where datagrams go beside it, if it is of a network.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) | Self::Vsock(..) | Self::Guest(..) => None,
        }
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = self.connected()?;
        stream.limit(SILENCE)?;
        Ok(stream)
    }

    fn connected(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path)?),
            Self::Vsock(cid, port) => Box::new(VsockStream::connect_with_cid_port(*cid, *port)?),
            Self::Guest(port, path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.limit(SILENCE)?;
                stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
                let mut line = String::new();
                // Of one byte, so that it takes nothing of what comes behind the line.
                BufReader::with_capacity(1, &stream).read_line(&mut line)?;
                if !line.starts_with("OK ") {
                    return Err(io::Error::other(format!("port {port} of the guest: {line:?}")));
                }
                Box::new(stream)
            }
        })
    }

    /// Calls `serve` with each connection, on a thread of its own; comes back only with an error.
    ///
    /// # Errors
    ///
    /// It cannot be listened there, or no longer.
    pub fn serve(&self, serve: impl Fn(Box<dyn Stream>) + Clone + Send + 'static) -> io::Result<()> {
        let start = |stream: Box<dyn Stream>| {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        };
        match self {
            Self::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                loop {
                    let (stream, _) = listener.accept()?;
                    stream.set_nodelay(true)?;
                    start(Box::new(stream));
                }
            }
            Self::Unix(path) | Self::Guest(_, path) => {
                let listener = UnixListener::bind(path)?;
                loop {
                    start(Box::new(listener.accept()?.0));
                }
            }
            Self::Vsock(_, port) => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, *port)?;
                loop {
                    start(Box::new(listener.accept()?.0));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_read_as_it_is_written_and_anything_else_is_refused() {
        for text in ["tcp:10.0.2.2:5000", "unix:/a b:c", "vsock:3:5000", "guest:5000:/run/v:1"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for wrong in ["", "tcp", "tcp:host:5000", "vsock:3", "vsock:3:x", "guest:x:/p", "udp:10.0.2.2:5000"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
