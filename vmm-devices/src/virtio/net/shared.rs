//! What the queues of a network device share.
//!
//! Lock order: `status` is innermost.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_core::LogLimit;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::{Counters, add};
use super::device::NetOptions;
use super::frame::HEADER;
use super::link::{Link, LinkQueue};
use super::offloads::{OF_GUEST, Offloads};
use crate::Timer;
use crate::sync::lock;
use crate::virtio::DeviceStatus;
use crate::virtio::throttle::{Throttle, Wait};

/// Frames that are thrown away at most before a driver's first.
const STALE: usize = 1024;

/// One direction of a pair, and what wakes it.
pub(super) struct Lane {
    pub(super) link: Arc<LinkQueue>,
    /// Rung when its turn at the rate limiter has come.
    pub(super) bell: Arc<EventFd>,
    pub(super) timer: Arc<Timer>,
}

impl Lane {
    pub(super) fn new(link: &Arc<LinkQueue>) -> io::Result<Arc<Self>> {
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Arc::new(Self { link: Arc::clone(link), bell, timer: Arc::new(Timer::new()?) }))
    }

    /// Has the direction look again after `delay`.
    pub(super) fn wake_in(&self, delay: Duration) {
        if let Err(error) = self.timer.set(delay) {
            // Cannot be, and is not to be waited for.
            tracing::error!(%error, "a timer cannot be set");
            self.ring();
        }
    }

    pub(super) fn ring(&self) {
        // Its counter cannot be full.
        let _ = self.bell.write(1);
    }

    /// Whether `throttle` lets a frame of so many bytes pass now. If not, the lane is woken when it is to ask again.
    pub(super) fn admit(&self, throttle: &Throttle, bytes: u64) -> bool {
        match throttle.admit(&self.bell, bytes) {
            Ok(()) => return true,
            Err(Wait::For(delay)) => self.wake_in(delay),
            Err(Wait::Turn) => {}
        }
        false
    }
}

/// Both directions of a pair of queues.
pub(super) struct Pair {
    pub(super) receive: Arc<Lane>,
    pub(super) transmit: Arc<Lane>,
}

pub(super) struct Shared {
    pub(super) options: NetOptions,
    pub(super) link: Arc<dyn Link>,
    pub(super) pairs: Vec<Pair>,
    pub(super) counters: Counters,
    /// A driver is ready for which the link was not set up yet.
    fresh: AtomicBool,
    /// Those that it has accepted.
    features: AtomicU64,
    /// How many pairs the driver uses.
    used: AtomicUsize,
    /// What may be left to the guest, as bits of its features.
    left: AtomicU64,
    /// The interface is gone.
    lost: AtomicBool,
    /// It was taken away, and does not come again.
    taken: AtomicBool,
    /// Of a driver that is ready.
    status: Mutex<Option<DeviceStatus>>,
    errors: LogLimit,
}

impl Shared {
    pub(super) fn new(options: NetOptions, link: Arc<dyn Link>) -> io::Result<Self> {
        let pair = |queue| Ok(Pair { receive: Lane::new(queue)?, transmit: Lane::new(queue)? });
        let pairs = link.queues().iter().map(pair).collect::<io::Result<_>>()?;
        Ok(Self {
            options,
            link,
            pairs,
            counters: Counters::default(),
            fresh: AtomicBool::new(false),
            features: AtomicU64::new(0),
            used: AtomicUsize::new(0),
            left: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            status: Mutex::default(),
            errors: LogLimit::default(),
        })
    }

    /// A driver is ready. What takes a lock of the host is left to a queue of the first pair.
    pub(super) fn start(&self, status: DeviceStatus, features: u64) {
        self.features.store(features, Ordering::Release);
        self.used.store(0, Ordering::Release);
        self.fresh.store(true, Ordering::Release);
        *lock(&self.status) = Some(status);
    }

    /// It is not any more.
    pub(super) fn stop(&self) {
        *lock(&self.status) = None;
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.features.load(Ordering::Acquire) & feature != 0
    }

    /// Sets the link up for a driver that is new. Called by what is served on the worker of the first pair, before anything else.
    pub(super) fn set_up(&self) {
        if !self.fresh.swap(false, Ordering::AcqRel) {
            return;
        }
        // Nothing is left to this driver that it has not accepted: what waits was meant for another one.
        let bits = self.features.load(Ordering::Acquire) & OF_GUEST;
        // Also for an interface that is gone and comes again.
        self.left.store(bits, Ordering::Release);
        let set_up = self.leave(bits).and_then(|()| self.use_pairs(1));
        if let Err(error) = set_up {
            self.failed("set up", &error);
            return;
        }
        if let Some(first) = self.pairs.first() {
            let mut header = [0; HEADER as usize];
            let read = |_| match rustix::io::read(&*first.receive.link, &mut header) {
                // Nobody is at the other end.
                Ok(0) => Err(io::Error::from_raw_os_error(libc::EPIPE)),
                read => Ok(read.map(drop)?),
            };
            if let Err(error) = (0..STALE).try_for_each(read)
                && error.kind() != io::ErrorKind::WouldBlock
            {
                self.failed("give frames for the guest", &error);
            }
        }
    }

    /// What the link may leave to the guest, which has these bits.
    pub(super) fn leave(&self, bits: u64) -> io::Result<()> {
        self.link.leave(Offloads::of_guest(bits))?;
        self.left.store(bits, Ordering::Release);
        Ok(())
    }

    /// Whether the interface is there: asks the host. Called on the worker of the first pair.
    pub(super) fn probe(&self) -> bool {
        if let Err(error) = self.leave(self.left.load(Ordering::Acquire)) {
            self.failed("keep the interface", &error);
        }
        !self.is_lost()
    }

    /// If the interface was gone and is there again: goes on with it, and tells the guest. Called on the worker of the first pair.
    pub(super) fn look_again(&self) {
        if !self.is_lost() || self.is_taken() {
            return;
        }
        let again = self.link.take_again().and_then(|is_there| {
            if is_there {
                self.leave(self.left.load(Ordering::Acquire))?;
                self.use_pairs(self.used.load(Ordering::Acquire).max(1))?;
            }
            Ok(is_there)
        });
        match again {
            Ok(false) => {}
            Ok(true) => {
                self.lost.store(false, Ordering::Release);
                add(&self.counters.link_returns, 1);
                tracing::info!(
                    device = self.options.name,
                    "the interface is there again: the guest's link is up"
                );
                self.tell();
                self.pairs.iter().for_each(|pair| pair.receive.ring());
            }
            Err(error) => self.failed("give the interface again", &error),
        }
    }

    /// Whether the bits are of offloads that the driver has accepted.
    pub(super) fn may_leave(&self, bits: u64) -> bool {
        bits & !(self.features.load(Ordering::Acquire) & OF_GUEST) == 0
    }

    /// Has the first `pairs` pairs used, and no others.
    pub(super) fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        self.link.use_pairs(pairs)?;
        self.used.store(pairs, Ordering::Release);
        // They may have looked before.
        self.pairs.iter().take(pairs).for_each(|pair| pair.receive.ring());
        Ok(())
    }

    pub(super) fn is_used(&self, pair: usize) -> bool {
        pair < self.used.load(Ordering::Acquire)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.is_taken()
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// The interface is taken away for good: the guest is told, and what waits does not any more.
    pub(super) fn take_away(&self) {
        self.taken.store(true, Ordering::Release);
        self.tell();
        self.pairs.iter().flat_map(|pair| [&pair.receive, &pair.transmit]).for_each(|lane| lane.ring());
    }

    /// The link is up or down now: the guest is told.
    fn tell(&self) {
        if let Some(status) = &*lock(&self.status) {
            status.config_changed();
        }
    }

    /// The host has answered with an error. One that says that the interface is gone is the end of the link: the guest is told.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        if self.is_taken() {
            return;
        }
        add(&self.counters.host_errors, 1);
        let device = &self.options.name;
        if is_gone(error) {
            if !self.lost.swap(true, Ordering::AcqRel) {
                add(&self.counters.link_losses, 1);
                tracing::warn!(device, %error, "the interface is gone: the guest's link is down");
                self.tell();
            }
            return;
        }
        if let Some(left_out) = self.errors.permit() {
            tracing::warn!(device, %error, left_out, "the host does not {what}");
        }
    }
}

/// Whether a descriptor has no interface any more. One that is only down answers writes with EIO, and may come up again.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EPIPE | libc::ECONNRESET))
}

/// Calls `call` until no signal has come between.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
