//! Control: the socket on which the owner of a machine asks for its state and changes it. `docs/control.md` is the user's page.
//!
//! [`operations`] is what can be asked, [`devices`] what of those that come and go, [`disks`] what of disks in use, [`nets`] what of network devices in use, [`limits`] what becomes of their limits, [`vsock`] what is told of the socket device, [`memory`] what of RAM, [`balloon`] what of the balloon, [`wire`] how it is written, [`lines`] how requests are told apart, [`descriptors`] how descriptors come along, [`arrivals`] with which request, [`roles`] what those are, [`opening`] how `ctl` comes to have them, `server` and `client` are the two ends of the socket.

pub mod arrivals;
pub mod balloon;
pub(crate) mod calls;
pub mod client;
mod connection;
mod current;
pub mod descriptors;
pub mod devices;
pub mod disks;
pub mod limits;
pub mod lines;
pub mod memory;
pub mod nets;
pub mod opening;
pub mod operations;
#[cfg(test)]
mod page;
mod render;
pub mod roles;
mod server;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;
pub mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vmm_core::{VmEvent, VmEvents};

pub(crate) use current::Publication;

use crate::config::VmConfig;
use crate::listener::{ListenError, Listener};
use current::Current;
use operations::{Controlled, Facts, Operations};
use server::Server;

/// Why there is no control.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Nobody can listen at the path. The user's to mend.
    #[error("control.socket (--api-sock)")]
    Socket(#[source] ListenError),
    /// The host lacks what every control needs: a descriptor, a thread.
    #[error("cannot set up the control socket")]
    Host(#[source] io::Error),
}

/// The control of this process, with a socket or without one. Dropped, it has answered whatever was carried out, and
/// the socket is gone.
pub(crate) struct Control {
    current: Arc<Current>,
    asked: VmEvents,
    _server: Option<Server>,
}

impl Control {
    /// Opens the socket that `config` names and starts to serve it: there is no machine yet.
    pub(crate) fn open(config: &VmConfig) -> Result<Self, OpenError> {
        let current = Arc::new(Current::default());
        let asked = VmEvents::new().map_err(OpenError::Host)?;
        let start = |path| {
            let listener = Listener::bind(path).map_err(OpenError::Socket)?;
            let facts = Facts { vcpus: config.cpu.count, memory: config.memory.size };
            let operations = Operations::new(facts, Arc::clone(&current), asked.clone());
            Server::start(listener, operations).map_err(OpenError::Host)
        };
        let server = config.control.socket.as_deref().map(start).transpose()?;
        Ok(Self { current, asked, _server: server })
    }

    /// Lets clients reach `machine` until what is returned is dropped. The machine must have been asked to stop then.
    pub(crate) fn publish(&self, machine: Arc<dyn Controlled>) -> Publication {
        self.current.publish(machine)
    }

    /// The machine has been taken apart and will be built again.
    pub(crate) fn starts_again(&self) {
        self.current.starts_again();
    }

    /// Why the process is to end, if a client has asked for that, or the control has failed.
    pub(crate) fn asked(&self) -> Option<&VmEvent> {
        self.asked.get()
    }
}

impl AsFd for Control {
    /// Readable from the moment on from which [`asked`](Self::asked) has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}
