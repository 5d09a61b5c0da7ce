//! `Link`: the host's end of a network device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::Offloads;
use super::tap::replace;
use crate::Wakeup;

/// Where the frames of a device go, and come from.
pub trait Link: Send + Sync {
    /// One for each pair of queues; at least one.
    fn queues(&self) -> &[Arc<LinkQueue>];

    /// What it can take from the guest, and leave to it if it is told that it may.
    fn offloads(&self) -> Offloads;

    /// What it may leave to the guest from now on.
    ///
    /// # Errors
    /// The host's.
    fn leave(&self, offloads: Offloads) -> io::Result<()>;

    /// What wakes when an interface that is gone may be there again; `None`: it never is.
    fn news(&self) -> Option<Arc<dyn Wakeup>> {
        None
    }

    /// Takes the interface that was gone, if there is news and it is there again; whether it is. It leaves nothing to the guest
    /// then, and spreads frames over all queues.
    ///
    /// # Errors
    /// The host's.
    fn take_again(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Spreads the frames for the guest over the first `pairs` queues, and over no others.
    ///
    /// # Errors
    /// The host's.
    fn use_pairs(&self, pairs: usize) -> io::Result<()>;
}

/// A descriptor that does not block, from which a frame is read with one system call, and to which one is written with one: each
/// with the header of a virtio device before it.
#[derive(Debug)]
pub struct LinkQueue(OwnedFd);

impl LinkQueue {
    /// Takes a descriptor that is set up already.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Lets go of what it stands for. Whoever uses it then finds that nobody is at the other end.
    pub(super) fn let_go(&self) -> io::Result<()> {
        let (own, _) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        replace(self, own)
    }
}

impl AsFd for LinkQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for LinkQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Wakeup for LinkQueue {
    /// What has come is read by the handler.
    fn take(&self) -> u64 {
        0
    }

    /// A guest without buffers leaves frames in it, and an interface that is gone leaves it out of order.
    fn only_news(&self) -> bool {
        true
    }
}
