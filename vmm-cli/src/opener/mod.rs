//! `Opener`: a process of its own that connects to sockets of the host, so that no thread of the monitor can.
//!
//! It knows *places*: a directory, as a descriptor, and a name in it. The monitor registers them before a guest runs, with directories that
//! it opens and closes again, and then seals the list. From then on it asks for a connection to a place by its number, and gets a
//! socket or an error. The process is this program from a fork on, has one thread, a table of system calls of its own and no other
//! descriptors than its end of a socket, the directories, and what it is about to hand over. It ends when that socket does.
//!
//! * `wire`: what is asked and answered;
//! * `packets`: how that goes over the socket, with descriptors;
//! * `desk`: the opener's side;
//! * `line`: the monitor's.

pub(crate) mod calls;
mod desk;
mod line;
mod packets;
mod process;
mod wire;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use vmm_devices::Connector;

use self::line::Line;
use self::process::Child;
use self::wire::Request;
use crate::config::{Need, VmConfig};
use crate::outcome::Failure;

/// The process, if the machine needs it. Dropped, it has ended.
#[derive(Default)]
pub(crate) struct Opener(Option<Running>);

struct Running {
    line: Arc<Line>,
    /// Waited for when the line has ended.
    _child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.line.end();
    }
}

impl Opener {
    /// Starts the process, if the machine of `config` connects to sockets while it runs. To be called before the second thread is
    /// started.
    ///
    /// # Errors
    /// The host gives no process or no socket.
    pub(crate) fn start(config: &VmConfig) -> Result<Self, Failure> {
        if !is_needed(config) {
            return Ok(Self(None));
        }
        let started = process::start(config);
        let started = started.context("the process that connects to sockets");
        let (socket, child) = started.map_err(Failure::host_cannot)?;
        Ok(Self(Some(Running { line: Arc::new(Line::new(socket)), _child: child })))
    }

    /// Registers the socket at `path`.
    ///
    /// # Errors
    /// There is no such directory, or it is not for this user.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Arc<dyn Connector>> {
        self.register(path, false)
    }

    /// Registers the sockets at `path` with `_` and a port behind.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub(crate) fn ports(&self, path: &Path) -> io::Result<Arc<dyn Connector>> {
        self.register(path, true)
    }

    fn register(&self, path: &Path, ports: bool) -> io::Result<Arc<dyn Connector>> {
        let Some(Running { line, .. }) = &self.0 else {
            return Err(io::Error::other("this machine connects to no sockets"));
        };
        Place::register(line, path, ports).map(|place| Arc::new(place) as _)
    }

    /// No more places come.
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) fn seal(&self) -> Result<(), Failure> {
        let sealed = self.0.iter().try_for_each(|running| running.line.ask(&Request::Seal, None).map(drop));
        sealed.map_err(Failure::host_cannot)
    }
}

/// Whether a machine of `config` connects to sockets: those that a guest asks for, and those of programs that serve a device.
fn is_needed(config: &VmConfig) -> bool {
    config.vsock.path.is_some() || config.places().iter().any(|place| place.need == Need::Connect)
}

/// A place of the opener's.
#[derive(Debug)]
struct Place {
    line: Arc<Line>,
    number: u32,
    path: PathBuf,
}

impl Place {
    fn register(line: &Arc<Line>, path: &Path, ports: bool) -> io::Result<Self> {
        let name = path.file_name().map_or_else(Vec::new, |name| name.as_bytes().to_vec());
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let directory = open_directory(directory)?;
        let (number, _) = line.ask(&Request::Place { name, ports }, Some(directory.as_fd()))?;
        Ok(Self { line: Arc::clone(line), number, path: path.into() })
    }
}

/// To look into, and for nothing else.
fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?.into())
}

impl Connector for Place {
    fn path(&self) -> &Path {
        &self.path
    }

    fn connect(&self, port: Option<u32>) -> io::Result<UnixStream> {
        let request = Request::Connect { place: self.number, port };
        let (_, socket) = self.line.ask(&request, None)?;
        socket.map(UnixStream::from).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}
