//! `Net`: a network device (virtio 1.3, section 5.1): its features, its configuration, and the queues it is served by.

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vmm_core::VmEvents;

use super::calls::NET;
use super::control::ControlQueue;
use super::counters::NetCounts;
use super::kernel::KernelLink;
use super::link::Link;
use super::offloads::bit;
use super::receive::ReceiveQueue;
use super::shared::Shared;
use super::transmit::TransmitQueue;
use crate::Worker;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::serve::{Batch, QueueWorkers, ServeQueue};
use crate::virtio::throttle::Throttle;
use crate::virtio::vhost::{Backend, KernelQueues};
use crate::virtio::{
    ActivateError, Activation, QueueReset, Running, Stopped, VirtioDevice, features, read_config,
};

/// Largest size of a queue.
const QUEUE_SIZE: u16 = 256;

/// Bytes of the configuration as far as its features give it a meaning (section 5.1.4).
const CONFIG_LENGTH: usize = 12;

/// What is said about a network device beside its link.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// What messages call it.
    pub name: String,
    /// The address that the guest is to have.
    pub mac: [u8; 6],
    /// The longest packet without its Ethernet header that the guest should send; `None`: nothing is said.
    pub mtu: Option<u16>,
    /// What may reach the guest. Of the link, not of the device: who makes the device again, hands it on.
    pub receive: Arc<Throttle>,
    /// What the guest may send.
    pub transmit: Arc<Throttle>,
}

/// A network device. Each pair of its queues has a thread of its own; one thread has the control queue where the kernel serves the pairs.
pub struct Net {
    shared: Arc<Shared>,
    workers: Arc<[Arc<Worker>]>,
    /// The kernel, if it serves the pairs.
    backend: Option<Arc<Backend>>,
    sizes: Vec<u16>,
}

/// What a queue is for (section 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
    /// It has no meaning with the features that were negotiated.
    None,
}

impl Role {
    /// Of the queue `index`, beside `pairs` pairs.
    fn of(index: usize, pairs: usize, has_control: bool) -> Self {
        match (index / 2, index % 2) {
            (pair, 0) if pair < pairs => Self::Receive(pair),
            (pair, _) if pair < pairs => Self::Transmit(pair),
            (pair, 0) if pair == pairs && has_control => Self::Control,
            _ => Self::None,
        }
    }

    /// The pair on whose worker it is served.
    fn pair(self) -> usize {
        match self {
            Self::Receive(pair) | Self::Transmit(pair) => pair,
            Self::Control | Self::None => 0,
        }
    }
}

impl Net {
    /// A device at the guest's end of `link`.
    ///
    /// # Errors
    /// The host has no thread or no descriptor for it.
    pub fn new(link: Arc<dyn Link>, options: NetOptions, events: &VmEvents) -> io::Result<Self> {
        Self::served_by(None, link, options, events)
    }

    /// A device at the guest's end of `link` whose pairs `backend` serves, with a descriptor for each. Rates are not limited.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub fn with_backend(
        backend: Arc<Backend>,
        link: Arc<dyn Link>,
        options: NetOptions,
        events: &VmEvents,
    ) -> io::Result<Self> {
        Self::served_by(Some(backend), link, options, events)
    }

    fn served_by(
        backend: Option<Arc<Backend>>,
        link: Arc<dyn Link>,
        options: NetOptions,
        events: &VmEvents,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options, link)?);
        let threads = if backend.is_some() { 1 } else { shared.pairs.len() };
        let worker = |_| Worker::spawn(&NET, events.clone()).map(Arc::new).map_err(|error| error.source);
        let workers: Vec<_> = (0..threads).map(worker).collect::<Result<_, _>>()?;
        let queues = shared.pairs.len().saturating_mul(2).saturating_add(1);
        Ok(Self { shared, workers: workers.into(), backend, sizes: vec![QUEUE_SIZE; queues] })
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> NetCounts {
        self.shared.counters.counts()
    }

    /// Takes the link away from a guest that has the device: it is down for good, what the guest sends is dropped, and its commands are
    /// answered. Nothing here has the interface any more then, but for a frame that is being read or written at the moment.
    pub fn lose_link(&self) {
        self.shared.take_away();
        self.backend.iter().for_each(|backend| backend.stop_for_good());
        for queue in self.shared.link.queues() {
            if let Err(error) = queue.let_go() {
                // It goes with the device.
                tracing::error!(device = self.shared.options.name, %error, "the interface is kept");
            }
        }
    }

    /// `struct virtio_net_config` (section 5.1.4).
    fn config(&self) -> [u8; CONFIG_LENGTH] {
        let up = if self.shared.is_lost() { 0 } else { VIRTIO_NET_S_LINK_UP };
        let status = u16::try_from(up).unwrap_or(0);
        let pairs = u16::try_from(self.shared.pairs.len()).unwrap_or(u16::MAX);
        let mtu = self.shared.options.mtu.unwrap_or(0);
        let words = [status, pairs, mtu].map(u16::to_le_bytes);
        let bytes = self.shared.options.mac.into_iter().chain(words.into_iter().flatten());
        let mut config = [0; CONFIG_LENGTH];
        config.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        config
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let own = bit(VIRTIO_NET_F_MAC)
            | bit(VIRTIO_NET_F_MRG_RXBUF)
            | bit(VIRTIO_NET_F_STATUS)
            | bit(VIRTIO_NET_F_CTRL_VQ)
            | bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
        let mtu = if self.shared.options.mtu.is_some() { bit(VIRTIO_NET_F_MTU) } else { 0 };
        let several = if self.shared.pairs.len() > 1 { bit(VIRTIO_NET_F_MQ) } else { 0 };
        let all = own | mtu | several | self.shared.link.offloads().features();
        match &self.backend {
            None => all | features::RING_RESET,
            // Of its features only this one is about frames.
            Some(backend) => all & (backend.features() | !bit(VIRTIO_NET_F_MRG_RXBUF)),
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let features = activation.features;
        let pairs = if features & bit(VIRTIO_NET_F_MQ) == 0 { 1 } else { self.shared.pairs.len() };
        let has_control = features & bit(VIRTIO_NET_F_CTRL_VQ) != 0;
        let role = move |index| Role::of(index, pairs, has_control);
        let (shared, workers) = (Arc::clone(&self.shared), Arc::clone(&self.workers));
        let first = self.workers.first().map(Arc::clone).ok_or_else(|| ActivateError {
            device: activation.status.name(),
            source: io::Error::from(io::ErrorKind::NotFound).into(),
        })?;
        let place = move |index| Arc::clone(workers.get(role(index).pair()).unwrap_or(&first));
        let serve = move |index| server(&shared, role(index));
        // Before the first batch.
        self.shared.start(activation.status.clone(), features);
        let queues: Result<Box<dyn Running>, _> = match &self.backend {
            None => QueueWorkers::start_spread(place, activation, serve).map(|queues| Box::new(queues) as _),
            Some(backend) => {
                let served = (Arc::clone(backend), pairs.saturating_mul(2));
                let link = Box::new(KernelLink(Arc::clone(&self.shared)));
                KernelQueues::start(&place(0), activation, served, link, serve)
                    .map(|queues| Box::new(queues) as _)
            }
        };
        let queues = queues.inspect_err(|_| self.shared.stop())?;
        Ok(Box::new(RunningNet { queues, shared: Arc::clone(&self.shared) }))
    }
}

fn server(shared: &Arc<Shared>, role: Role) -> Box<dyn ServeQueue> {
    let pair = shared.pairs.get(role.pair());
    match (role, pair) {
        (Role::Receive(index), Some(pair)) => {
            Box::new(ReceiveQueue::new(Arc::clone(shared), index, Arc::clone(&pair.receive)))
        }
        (Role::Transmit(_), Some(pair)) => {
            Box::new(TransmitQueue::new(Arc::clone(shared), Arc::clone(&pair.transmit)))
        }
        (Role::Control, _) => Box::new(ControlQueue::new(Arc::clone(shared))),
        _ => Box::new(NoQueue),
    }
}

/// A queue that means nothing: what is in it stays there.
pub(in crate::virtio) struct NoQueue;

impl ServeQueue for NoQueue {
    fn serve(&mut self, _: &mut Queue, _: &vmm_memory::GuestMemory) -> Result<Batch, QueueError> {
        Ok(Batch::Waiting)
    }
}

/// A device whose driver is ready.
struct RunningNet {
    queues: Box<dyn Running>,
    shared: Arc<Shared>,
}

impl Running for RunningNet {
    fn stop(self: Box<Self>, done: Stopped) {
        self.shared.stop();
        self.queues.stop(done);
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        self.queues.queue_reset()
    }

    fn interrupt_moved(&mut self, index: usize) {
        self.queues.interrupt_moved(index);
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("name", &self.shared.options.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod role_tests {
    use super::*;

    #[test]
    fn the_control_queue_follows_the_pairs_that_were_negotiated() {
        let roles = |pairs, control| (0..7).map(|index| Role::of(index, pairs, control)).collect::<Vec<_>>();
        use Role::{Control, None, Receive, Transmit};
        assert_eq!(
            roles(3, true),
            [Receive(0), Transmit(0), Receive(1), Transmit(1), Receive(2), Transmit(2), Control]
        );
        assert_eq!(roles(1, true), [Receive(0), Transmit(0), Control, None, None, None, None]);
        assert_eq!(roles(1, false)[2], None);
    }
}
