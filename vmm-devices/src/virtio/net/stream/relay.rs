//! `Relay`: passes frames on between a stream and packets, on a thread of its own.
//!
//! Each direction has one buffer, and stops where it is full: what cannot be passed on waits in the kernel, so that either side slows the other
//! down as far as it goes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use vmm_core::LogLimit;

use super::Shared;
use super::frames::{Incoming, Outgoing, PassOn};
use crate::Connector;

/// When the socket of a program that is gone is looked for again.
const RETRY: Duration = Duration::from_secs(1);

/// Frames of a direction before the other one has its turn.
const BATCH: usize = 64;

/// What is behind a hang-up nobody reads.
const GONE: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR);

/// The thread's side of a link.
pub(super) struct Relay {
    socket: Arc<dyn Connector>,
    /// The device is at the other end.
    packets: OwnedFd,
    /// `None`: nobody is there.
    stream: Option<UnixStream>,
    shared: Arc<Shared>,
    to_guest: Incoming,
    to_host: Outgoing,
    /// A frame is there that the device has no room for.
    is_full: bool,
    /// The device is to be told that the other program is gone.
    owes_loss: bool,
    retry_at: Instant,
    log: LogLimit,
}

/// What has become of the three things that are waited for.
struct Ready {
    end: bool,
    packets: PollFlags,
    stream: PollFlags,
}

impl Relay {
    pub(super) fn new(
        socket: Arc<dyn Connector>,
        packets: OwnedFd,
        stream: UnixStream,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            socket,
            packets,
            stream: Some(stream),
            shared,
            to_guest: Incoming::new(),
            to_host: Outgoing::new(),
            is_full: false,
            owes_loss: false,
            retry_at: Instant::now(),
            log: LogLimit::default(),
        }
    }

    /// Until the other end of `end` is closed, or the device has let go of its end of the packets.
    pub(super) fn run(mut self, end: &UnixStream) {
        loop {
            let ready = match self.wait(end) {
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, path = %self.socket.path().display(), "a network stream is not served any more");
                    self.shared.is_connected.store(false, Ordering::Release);
                    return;
                }
            };
            if ready.end || ready.packets.intersects(GONE) {
                return;
            }
            self.turn(&ready);
        }
    }

    /// Waits until something can be done.
    fn wait(&self, end: &UnixStream) -> io::Result<Ready> {
        let mut packets = PollFlags::empty();
        // Without anybody there, what the device sends is thrown away.
        packets.set(PollFlags::POLLIN, self.to_host.is_empty() || self.stream.is_none());
        packets.set(PollFlags::POLLOUT, self.is_full || self.owes_loss);
        let mut stream = PollFlags::empty();
        stream.set(PollFlags::POLLIN, !self.is_full);
        stream.set(PollFlags::POLLOUT, !self.to_host.is_empty());
        let mut fds =
            vec![PollFd::new(end.as_fd(), PollFlags::POLLIN), PollFd::new(self.packets.as_fd(), packets)];
        fds.extend(self.stream.iter().map(|socket| PollFd::new(socket.as_fd(), stream)));
        let timeout = match &self.stream {
            Some(_) => PollTimeout::NONE,
            None => {
                let left = self.retry_at.saturating_duration_since(Instant::now());
                // Not before it is over.
                PollTimeout::try_from(left.saturating_add(Duration::from_millis(1)))
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        poll(&mut fds, timeout)?;
        let ready = |index: usize| fds.get(index).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        Ok(Ready { end: !ready(0).is_empty(), packets: ready(1), stream: ready(2) })
    }

    fn turn(&mut self, ready: &Ready) {
        if self.owes_loss {
            self.tell_loss();
        }
        let passed = self.pass(ready);
        if let Err(reason) = passed {
            self.lose(&reason);
        }
        if self.stream.is_none() {
            self.look_again();
        }
    }

    /// Passes on what there is, each way. An error: the other program is gone, or has broken the stream.
    fn pass(&mut self, ready: &Ready) -> io::Result<()> {
        let Some(mut stream) = self.stream.as_ref() else {
            // What is no packet is found when it is waited for again.
            let _ = self.to_host.take(&self.packets);
            self.to_host.clear();
            return Ok(());
        };
        for _ in 0..BATCH {
            if self.to_host.is_empty() && !taken(self.to_host.take(&self.packets))? {
                break;
            }
            if !self.to_host.is_empty() && !taken(self.to_host.write(&mut stream))? {
                break;
            }
        }
        for _ in 0..BATCH {
            match self.to_guest.pass_on(&self.packets) {
                Ok(true) => self.is_full = false,
                Ok(false) => {
                    self.is_full = false;
                    match self.to_guest.read(&mut stream) {
                        Ok(true) => {}
                        Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        read => return taken(read.map(drop)).map(drop),
                    }
                }
                Err(PassOn::TooLong) => return Err(io::ErrorKind::InvalidData.into()),
                Err(PassOn::Packets(error)) => {
                    self.is_full = !taken(Err(error))?;
                    break;
                }
            }
        }
        // It is not read to its end while the device has no room.
        if self.is_full && ready.stream.intersects(GONE) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn lose(&mut self, reason: &io::Error) {
        self.stream = None;
        self.to_guest.clear();
        self.to_host.clear();
        self.is_full = false;
        self.shared.is_connected.store(false, Ordering::Release);
        self.retry_at = Instant::now().checked_add(RETRY).unwrap_or(self.retry_at);
        if let Some(left_out) = self.log.permit() {
            tracing::warn!(path = %self.socket.path().display(), %reason, left_out, "the other end of a network stream is gone");
        }
        self.tell_loss();
    }

    /// By a packet that is none.
    fn tell_loss(&mut self) {
        let sent = send(self.packets.as_raw_fd(), &[], MsgFlags::MSG_NOSIGNAL);
        self.owes_loss = sent == Err(nix::errno::Errno::EAGAIN);
    }

    /// Connects again, if it is time for that.
    fn look_again(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        self.retry_at = Instant::now().checked_add(RETRY).unwrap_or(self.retry_at);
        if let Ok(stream) = self.socket.connect(None) {
            self.stream = Some(stream);
            self.shared.is_connected.store(true, Ordering::Release);
            // Its counter cannot be full.
            let _ = self.shared.news.write(1);
        }
    }
}

/// Whether there was something, or room for it.
fn taken(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
