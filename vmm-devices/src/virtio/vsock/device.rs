//! `Vsock`: the device that a transport sees.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::counters::{Counters, VsockCounts};
use super::host::Watch;
use super::hub::{Hub, Parts};
use super::queue::{EventQueue, RECEIVE, ReceiveQueue, TRANSMIT, TransmitQueue};
use super::shared::{By, Shared};
use crate::virtio::ending::Panicked;
use crate::virtio::serve::{QueueWorkers, ServeQueue};
use crate::virtio::{
    ActivateError, Activation, DeviceStatus, QueueReset, Running, Stopped, VirtioDevice, features,
    read_config,
};
use crate::{Connector, Handler, Progress, Timer, Worker, WorkerError};

/// Descriptors of the three queues.
pub(super) const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// VIRTIO_VSOCK_F_STREAM: stream sockets; VIRTIO_VSOCK_F_NO_IMPLIED_STREAM: none of them without that (section 5.10.3).
const F_STREAM: u64 = 1 << 0;
const F_NO_IMPLIED_STREAM: u64 = 1 << 2;

/// What is said about a vsock device.
#[derive(Debug)]
pub struct VsockOptions {
    /// The guest's address: not 0, 1, 2, nor 2^32 - 1 or above.
    pub cid: u32,
    /// Programs of the host connect to the guest here.
    pub listener: UnixListener,
    /// To what listens to the guest's connections to a port: at the path of the listener with `_` and the port behind it.
    pub ports: Arc<dyn Connector>,
    /// Most connections at a time, a descriptor each; of more than [`MOST_CONNECTIONS`](super::MOST_CONNECTIONS), that many.
    pub connections: usize,
}

/// The socket device.
pub struct Vsock {
    worker: Arc<Worker>,
    options: VsockOptions,
    counters: Arc<Counters>,
}

impl Vsock {
    /// A device that is served on `worker`, whose sockets do not block.
    ///
    /// # Errors
    /// The listener cannot be made so.
    pub fn new(worker: Arc<Worker>, options: VsockOptions) -> io::Result<Self> {
        options.listener.set_nonblocking(true)?;
        Ok(Self { worker, options, counters: Arc::default() })
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> VsockCounts {
        self.counters.counts()
    }

    /// The connections of a driver that is ready, and who serves them beside the queues.
    fn connect(&self, activation: &Activation) -> io::Result<(Arc<Shared>, [Handler; 2])> {
        let (watch, timer) = (Arc::new(Watch::new()?), Arc::new(Timer::new()?));
        let features = activation.features & (F_STREAM | F_NO_IMPLIED_STREAM);
        let hub = Hub::new(Parts {
            cid: self.options.cid.into(),
            streams: features != F_NO_IMPLIED_STREAM,
            most: self.options.connections,
            ports: Arc::clone(&self.options.ports),
            listener: self.options.listener.try_clone()?,
            watch: Arc::clone(&watch),
            counters: Arc::clone(&self.counters),
        });
        let shared = Arc::new(Shared::new(hub, &activation.queues, Arc::clone(&timer)));
        let (name, failed) = (activation.status.name(), || failed(&activation.status));
        let refused = |WorkerError { source, .. }| source;
        let hosts = {
            let (shared, status, news) = (Arc::clone(&shared), activation.status.clone(), Arc::clone(&watch));
            let serve = move |_| listen_to_hosts(&shared, &news, &status);
            self.worker.watch(name, watch, serve, failed()).map_err(refused)?
        };
        let time = {
            let shared = Arc::clone(&shared);
            let serve = move |_| {
                shared.pass_time();
                Progress::Done
            };
            self.worker.watch(name, timer, serve, failed()).map_err(refused)?
        };
        Ok((shared, [hosts, time]))
    }
}

/// The device has a bug.
fn failed(status: &DeviceStatus) -> impl FnOnce() + Send + 'static {
    let status = status.clone();
    move || status.set_needs_reset(&Panicked)
}

/// A turn of the sockets that have news; while there are more, their descriptor stays readable.
fn listen_to_hosts(shared: &Shared, watch: &Watch, status: &DeviceStatus) -> Progress {
    match watch.news() {
        Ok(all) => shared.with(By::Other, |hub, now| all.into_iter().for_each(|news| hub.news(news, now))),
        Err(error) => status.set_needs_reset(&error),
    }
    Progress::Done
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        F_STREAM | F_NO_IMPLIED_STREAM | features::RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // The upper half is reserved (section 5.10.4).
        read_config(&u64::from(self.options.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let device = activation.status.name();
        let connected = self.connect(&activation);
        let (shared, hosts) = connected.map_err(|source| ActivateError { device, source: source.into() })?;
        let serve = move |index| -> Box<dyn ServeQueue> {
            match index {
                RECEIVE => Box::new(ReceiveQueue::new(Arc::clone(&shared))),
                TRANSMIT => Box::new(TransmitQueue::new(Arc::clone(&shared))),
                _ => Box::new(EventQueue),
            }
        };
        let queues = QueueWorkers::start(&self.worker, activation, serve)?;
        Ok(Box::new(RunningVsock { hosts, queues }))
    }
}

/// A device whose driver is ready. With it go all connections.
struct RunningVsock {
    hosts: [Handler; 2],
    queues: QueueWorkers,
}

impl Running for RunningVsock {
    fn stop(self: Box<Self>, done: Stopped) {
        self.hosts.into_iter().for_each(Handler::retire);
        Box::new(self.queues).stop(done);
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        self.queues.queue_reset()
    }
}
