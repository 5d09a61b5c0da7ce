//! `StreamLink`: a stream socket of another program of the host as the link of a device, such as that of passt. Each frame has its length before
//! it, as with QEMU's `-netdev stream`. It takes no privilege.
//!
//! A stream has no header of virtio, so nothing is left to either side, and it may give and take a part of a frame. A thread of its own puts frames
//! together: the device's end is a socket with a frame in each packet. When the other program is gone, the device gets an empty packet, which
//! no frame is; its socket is looked for then, now and again.

mod error;
mod frames;
mod relay;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vmm_core::thread::spawn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::calls::NET_STREAM;

pub use error::StreamError;
use relay::Relay;

use super::link::{Link, LinkQueue};
use super::offloads::Offloads;
use crate::{Connector, Wakeup};

/// The socket of another program. Dropped, it is left, and the thread has ended.
#[derive(Debug)]
pub struct StreamLink {
    queues: [Arc<LinkQueue>; 1],
    shared: Arc<Shared>,
    /// Closed when the thread is to end.
    end: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the device know of each other.
#[derive(Debug)]
struct Shared {
    is_connected: AtomicBool,
    /// Signalled when the other program is there again.
    news: Arc<EventFd>,
}

impl StreamLink {
    /// Connects to who listens at `socket`.
    ///
    /// # Errors
    /// [`StreamError`] says what is missing, and what mends it.
    pub fn open(socket: Arc<dyn Connector>) -> Result<Self, StreamError> {
        let failed = |source| StreamError::Connect { path: socket.path().into(), source };
        let stream = socket.connect(None).map_err(failed)?;
        Self::over(socket, stream)
    }

    /// The same over a stream that is connected and does not block; `socket` is where to look for another.
    fn over(socket: Arc<dyn Connector>, stream: UnixStream) -> Result<Self, StreamError> {
        let (own, other) = packets().map_err(StreamError::Own)?;
        let news = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(StreamError::Own)?;
        let (end, ended) = UnixStream::pair().map_err(StreamError::Own)?;
        let shared = Arc::new(Shared { is_connected: AtomicBool::new(true), news: Arc::new(news) });
        let relay = Relay::new(socket, other, stream, Arc::clone(&shared));
        let thread = spawn(&NET_STREAM, NET_STREAM.name, move || relay.run(&ended));
        let thread = Some(thread.map_err(StreamError::Own)?);
        Ok(Self { queues: [Arc::new(LinkQueue::new(own))], shared, end: Some(end), thread })
    }
}

/// Two ends of a socket that keeps packets apart and does not block.
fn packets() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

impl Link for StreamLink {
    fn queues(&self) -> &[Arc<LinkQueue>] {
        &self.queues
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn leave(&self, _: Offloads) -> io::Result<()> {
        // Nothing was offered. Whoever asks learns whether anybody is there.
        if self.shared.is_connected.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ENODEV))
        }
    }

    fn news(&self) -> Option<Arc<dyn Wakeup>> {
        Some(Arc::clone(&self.shared.news) as _)
    }

    fn take_again(&self) -> io::Result<bool> {
        Ok(self.shared.is_connected.load(Ordering::Acquire))
    }

    fn use_pairs(&self, _: usize) -> io::Result<()> {
        // There is one.
        Ok(())
    }
}

impl Drop for StreamLink {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
