//! What is behind the guest's socket device: made before the machine is built, and kept through its restarts.

use std::io;
use std::sync::Arc;
use vmm_devices::virtio::vsock::calls::VSOCK;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_core::VmEvents;
use vmm_devices::virtio::vhost::{Backend, VhostMemory, VhostVsock};
use vmm_devices::virtio::vsock::{
    KernelVsock, MOST_CONNECTIONS, MOST_GREETINGS, Vsock, VsockCounts, VsockOptions,
};
use vmm_devices::{Connector, Worker};

use crate::config::VsockConfig;
use crate::control::vsock::VsockStatus;
use crate::listener::Listener;
use crate::opener::Opener;
use crate::outcome::Failure;

/// Descriptors that are left for everything else, and for those who have not said what they want.
const OTHERS: usize = 256 + MOST_GREETINGS;

/// What is behind the device, and who the guest is. Dropped, the path of a socket goes.
pub(crate) struct Socket {
    cid: u32,
    behind: Behind,
}

enum Behind {
    /// A socket at a path.
    Own {
        listener: Listener,
        /// To what listens to the guest's connections to a port.
        ports: Arc<dyn Connector>,
        /// Most connections at a time.
        connections: usize,
    },
    Kernel(Arc<VhostVsock>),
}

/// What can be told of the device in one life of the machine.
pub(crate) struct SocketPart {
    told: VsockStatus,
    /// The device, if it is not the kernel's.
    own: Option<Arc<Vsock>>,
}

impl SocketPart {
    /// What it has counted, if it is not the kernel's.
    pub(crate) fn counts(&self) -> Option<VsockCounts> {
        self.own.as_ref().map(|device| device.counts())
    }

    /// How it is.
    pub(crate) fn status(&self) -> VsockStatus {
        VsockStatus { counts: self.counts(), ..self.told.clone() }
    }
}

/// The device of one life of the machine.
pub(crate) enum SocketDevice {
    /// Served by a thread of its own.
    Own(Arc<Vsock>),
    /// Served by the host's kernel.
    Kernel(Arc<KernelVsock>),
}

impl Socket {
    /// Binds the socket of `config`, or takes its address of the kernel, if there is to be a device.
    ///
    /// # Errors
    /// Something is at its path; the path cannot be had; the kernel does not give the address.
    pub(crate) fn open(config: &VsockConfig, opener: &Opener) -> Result<Option<Self>, Failure> {
        let cid = config.cid;
        let behind = match &config.path {
            _ if config.vhost => {
                let fd =
                    VhostVsock::open(cid).context("vsock.vhost (--vsock)").map_err(Failure::host_cannot)?;
                Behind::Kernel(Arc::new(fd))
            }
            None => return Ok(None),
            Some(path) => {
                let listener = Listener::bind(path);
                let listener = listener.context("vsock.path (--vsock)").map_err(Failure::bad_input)?;
                let ports = opener.ports(path).context("vsock.path (--vsock)").map_err(Failure::bad_input)?;
                let connections = allow_descriptors().saturating_sub(OTHERS).clamp(1, MOST_CONNECTIONS);
                Behind::Own { listener, ports, connections }
            }
        };
        Ok(Some(Self { cid, behind }))
    }

    /// What can be told of the device in one life of the machine, which is `own` if it is not the kernel's.
    pub(crate) fn part(&self, own: Option<Arc<Vsock>>) -> SocketPart {
        let (path, most_connections) = match &self.behind {
            Behind::Own { ports, connections, .. } => (Some(ports.path().into()), Some(*connections as u64)),
            Behind::Kernel(_) => (None, None),
        };
        let vhost = path.is_none();
        let told = VsockStatus { cid: self.cid, path, vhost, most_connections, counts: None };
        SocketPart { told, own }
    }

    /// The device of one life of the machine, with a thread of its own; its guest memory is that of `memory`.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents, memory: &VhostMemory) -> Result<SocketDevice, Failure> {
        let worker = Arc::new(Worker::spawn(&VSOCK, events.clone()).map_err(Failure::host_cannot)?);
        let cid = self.cid;
        let device = match &self.behind {
            Behind::Own { listener, ports, connections } => listener.share().and_then(|listener| {
                let (ports, connections) = (Arc::clone(ports), *connections);
                let options = VsockOptions { cid, listener, ports, connections };
                Vsock::new(worker, options).map(|device| SocketDevice::Own(Arc::new(device)))
            }),
            Behind::Kernel(fd) => Backend::new(vec![Arc::clone(fd) as _], memory)
                .map(|backend| SocketDevice::Kernel(Arc::new(KernelVsock::new(worker, backend, cid)))),
        };
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
