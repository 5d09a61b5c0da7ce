//! The socket of the guest's socket device: bound before the machine is built, and kept through its restarts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::vsock::{MOST_CONNECTIONS, MOST_GREETINGS, Vsock, VsockOptions};

use crate::config::VsockConfig;
use crate::listener::{ListenError, Listener};
use crate::outcome::Failure;

/// Descriptors that are left for everything else, and for those who have not said what they want.
const OTHERS: usize = 256 + MOST_GREETINGS;

/// The socket, and who the guest is. Dropped, its path goes.
pub(crate) struct Socket {
    listener: Listener,
    path: PathBuf,
    cid: u32,
    /// Most connections at a time.
    connections: usize,
}

impl Socket {
    /// Binds the socket of `config`, if there is to be one.
    ///
    /// # Errors
    /// Something is at its path; the path cannot be had.
    pub(crate) fn open(config: &VsockConfig) -> Result<Option<Self>, ListenError> {
        let Some(path) = &config.path else { return Ok(None) };
        let listener = Listener::bind(path)?;
        let connections = allow_descriptors().saturating_sub(OTHERS).clamp(1, MOST_CONNECTIONS);
        Ok(Some(Self { listener, path: path.clone(), cid: config.cid, connections }))
    }

    /// The device of one life of the machine, with a thread of its own.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents) -> Result<Vsock, Failure> {
        let worker = Worker::spawn("vsock", events.clone()).map_err(Failure::host_cannot)?;
        let listener = self.listener.share();
        let device = listener.and_then(|listener| {
            let (cid, connections) = (self.cid, self.connections);
            let options = VsockOptions { cid, path: self.path.clone(), listener, connections };
            Vsock::new(Arc::new(worker), options)
        });
        device.context("the socket device").map_err(Failure::host_cannot)
    }
}

/// Raises the soft limit of open files to what all connections take, as far as the hard one lets it; returns what it is then.
fn allow_descriptors() -> usize {
    let wanted = (MOST_CONNECTIONS + OTHERS) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(now) = current.filter(|now| *now < wanted) else { return MOST_CONNECTIONS + OTHERS };
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted)).max(now);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => usize::try_from(raised).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::debug!(error = %io::Error::from(error), "the limit of open files stays as it is");
            usize::try_from(now).unwrap_or(usize::MAX)
        }
    }
}
