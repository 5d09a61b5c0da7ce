//! The socket of the guest's socket device: bound before the machine is built, and kept through its restarts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::vsock::{Vsock, VsockOptions};

use crate::config::VsockConfig;
use crate::listener::{ListenError, Listener};
use crate::outcome::Failure;

/// Descriptors that a device with all its connections takes, and what else there is.
const DESCRIPTORS: u64 = 4096 + 128 + 1024;

/// The socket, and who the guest is. Dropped, its path goes.
pub(crate) struct Socket {
    listener: Listener,
    path: PathBuf,
    cid: u32,
}

impl Socket {
    /// Binds the socket of `config`, if there is to be one.
    ///
    /// # Errors
    /// Something is at its path; the path cannot be had.
    pub(crate) fn open(config: &VsockConfig) -> Result<Option<Self>, ListenError> {
        let Some(path) = &config.path else { return Ok(None) };
        let listener = Listener::bind(path)?;
        allow_descriptors();
        Ok(Some(Self { listener, path: path.clone(), cid: config.cid }))
    }

    /// The device of one life of the machine, with a thread of its own.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents) -> Result<Vsock, Failure> {
        let worker = Worker::spawn("vsock", events.clone()).map_err(Failure::host_cannot)?;
        let listener = self.listener.share();
        let device = listener.and_then(|listener| {
            let options = VsockOptions { cid: self.cid, path: self.path.clone(), listener };
            Vsock::new(Arc::new(worker), options)
        });
        device.context("the socket device").map_err(Failure::host_cannot)
    }
}

/// Raises the soft limit of open files, as far as the hard one lets it: each connection is one.
fn allow_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(now) = current.filter(|now| *now < DESCRIPTORS) else { return };
    let wanted = maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS)).max(now);
    let limit = Rlimit { current: Some(wanted), maximum };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(error = %io::Error::from(error), "the limit of open files stays as it is");
    }
}
