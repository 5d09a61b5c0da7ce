//! A device whose pairs a vhost without a kernel serves.

use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;
use crate::Wakeup;
use crate::virtio::features::RING_RESET;
use crate::virtio::vhost::testing::FakeFd;
use crate::virtio::vhost::{Backend, VhostMemory};

const SEVERAL: u64 = bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_CTRL_VQ);
const STATUS: u64 = 6;

/// A link whose interface comes and goes.
struct Fickle {
    sockets: Arc<Sockets>,
    is_there: AtomicBool,
    news: Arc<EventFd>,
}

impl Link for Fickle {
    fn queues(&self) -> &[Arc<LinkQueue>] {
        self.sockets.queues()
    }

    fn offloads(&self) -> Offloads {
        self.sockets.offloads()
    }

    fn leave(&self, offloads: Offloads) -> io::Result<()> {
        match self.is_there.load(Ordering::Acquire) {
            true => self.sockets.leave(offloads),
            false => Err(io::Error::from_raw_os_error(libc::EBADFD)),
        }
    }

    fn news(&self) -> Option<Arc<dyn Wakeup>> {
        Some(Arc::clone(&self.news) as _)
    }

    fn take_again(&self) -> io::Result<bool> {
        Ok(self.is_there.load(Ordering::Acquire))
    }

    fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        self.sockets.use_pairs(pairs)
    }
}

/// A device of two pairs.
struct Served {
    memory: Arc<AddressSpace>,
    link: Arc<Fickle>,
    fds: [Arc<FakeFd>; 2],
    net: Net,
    queues: Vec<Driver>,
    _hosts: Vec<File>,
}

impl Served {
    fn new() -> Self {
        let (sockets, hosts) = Sockets::new(2);
        let news = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
        let link = Arc::new(Fickle { sockets, is_there: AtomicBool::new(true), news });
        let (memory, followed) = (ram(), VhostMemory::new());
        memory.add_observer(Arc::clone(&followed) as _).unwrap();
        let fds = [(); 2].map(|()| FakeFd::new(MERGEABLE | EVENT_IDX));
        let backend = Backend::new(fds.clone().map(|fd| fd as _).to_vec(), &followed).unwrap();
        let net = Net::with_backend(backend, Arc::clone(&link) as _, options(), &VmEvents::new().unwrap());
        let queue = |index: usize| Driver::new(&memory, index, SIZE, 0x1_0000 + 0x4_0000 * index as u64);
        let queues = (0..5).map(queue).collect();
        Self { link, fds, net: net.unwrap(), queues, memory, _hosts: hosts }
    }

    fn start(&self, features: u64) -> Started {
        let queues: Vec<_> = self.queues.iter().collect();
        Started::new(&self.net, &self.memory, &queues, features).unwrap()
    }

    /// The interface is there from now on, or is gone; comes back when the guest was told.
    fn change_link(&self, started: &Started, is_there: bool) {
        self.link.is_there.store(is_there, Ordering::Release);
        self.link.news.write(1).unwrap();
        started.interrupts.wait_for_config();
        let mut status = [0; 2];
        self.net.read_config(STATUS, &mut status);
        assert_eq!(status, [u8::from(is_there), 0]);
    }
}

#[test]
fn the_kernel_serves_the_pairs_and_the_worker_the_control_queue() {
    let mut served = Served::new();
    assert_eq!(served.net.features() & (RING_RESET | MERGEABLE | SEVERAL), MERGEABLE | SEVERAL);
    let started = served.start(SEVERAL | MERGEABLE | EVENT_IDX);
    served.fds.iter().for_each(|fd| fd.wait_for_starts(1));
    for (fd, pair) in served.fds.iter().zip(0..) {
        let rings: Vec<_> = fd.rings().iter().map(|ring| (ring.index, ring.queue.index)).collect();
        assert_eq!(rings, [(0, 2 * pair), (1, 2 * pair + 1)]);
        assert_eq!(fd.served_features(), MERGEABLE | EVENT_IDX);
    }
    let command = [VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];
    served.queues[4].submit(&[&command, &[2, 0]], &[1]);
    started.doorbells[4].ring();
    started.wait_used(&mut served.queues[4], 1);
    assert_eq!(*lock(&served.link.sockets.used), [1, 2]);
    assert_eq!(started.stop().len(), 5);
}

#[test]
fn a_driver_of_one_pair_has_one_that_is_served() {
    let served = Served::new();
    let started = served.start(0);
    served.fds[0].wait_for_starts(1);
    assert_eq!(started.stop().len(), 5);
    assert_eq!(served.fds.each_ref().map(|fd| fd.starts()), [1, 0]);
}

#[test]
fn fault_b11_a_kernel_whose_interface_is_gone_begins_anew_when_it_is_there_again() {
    let served = Served::new();
    let started = served.start(MERGEABLE);
    served.fds[0].wait_for_starts(1);
    served.change_link(&started, false);
    served.change_link(&started, true);
    served.fds[0].wait_for_starts(2);
    let counts = served.net.counts();
    assert_eq!((counts.link_losses, counts.link_returns, started.needs_reset()), (1, 1, false));
}

#[test]
fn fault_b11_a_driver_without_an_interface_is_served_when_there_is_one() {
    let served = Served::new();
    served.link.is_there.store(false, Ordering::Release);
    let started = served.start(MERGEABLE);
    started.interrupts.wait_for_config();
    served.change_link(&started, true);
    served.fds[0].wait_for_starts(1);
    assert_eq!((served.fds[0].starts(), started.needs_reset()), (1, false));
}

#[test]
fn a_kernel_whose_interface_is_taken_away_serves_nothing_any_more_and_commands_are_answered() {
    let mut served = Served::new();
    let started = served.start(SEVERAL | MERGEABLE);
    served.fds[0].wait_for_starts(1);
    served.net.lose_link();
    started.interrupts.wait_for_config();
    assert!(served.fds.iter().all(|fd| fd.rings().is_empty()));
    // News of an interface of that name are of another one.
    served.link.news.write(1).unwrap();
    let command = [VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];
    served.queues[4].submit(&[&command, &[2, 0]], &[1]);
    started.doorbells[4].ring();
    started.wait_used(&mut served.queues[4], 1);
    assert_eq!(started.stop().len(), 5);
    let again = served.start(MERGEABLE);
    assert!(!again.needs_reset());
    drop(again);
    assert_eq!(served.fds[0].starts(), 1);
}
