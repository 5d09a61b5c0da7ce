//! `KernelVsock`: the socket device whose streams the kernel carries: on the host they are sockets of the family `AF_VSOCK`.

use std::fmt;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::device::QUEUE_SIZES;
use super::queue::EventQueue;
use crate::Worker;
use crate::virtio::vhost::{Backend, KernelQueues, Unattended};
use crate::virtio::{ActivateError, Activation, Running, VirtioDevice, read_config};

/// VIRTIO_VSOCK_F_SEQPACKET (virtio 1.3, section 5.10.3). Without it there are stream sockets alone.
const F_SEQPACKET: u64 = 1 << 1;

/// A socket device that the kernel serves, but for its event queue, which stays empty.
pub struct KernelVsock {
    worker: Arc<Worker>,
    backend: Arc<Backend>,
    cid: u32,
}

impl KernelVsock {
    /// The device of the guest with the address `cid`, which the only descriptor of `backend` has too.
    #[must_use]
    pub fn new(worker: Arc<Worker>, backend: Arc<Backend>, cid: u32) -> Self {
        Self { worker, backend, cid }
    }
}

impl VirtioDevice for KernelVsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        self.backend.features() & F_SEQPACKET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // The upper half is reserved (section 5.10.4).
        read_config(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let backend = (Arc::clone(&self.backend), self.backend.queues());
        let event = |_| Box::new(EventQueue) as _;
        let queues = KernelQueues::start(&self.worker, activation, backend, Box::new(Unattended), event)?;
        Ok(Box::new(queues))
    }
}

impl fmt::Debug for KernelVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelVsock").field("cid", &self.cid).finish_non_exhaustive()
    }
}
