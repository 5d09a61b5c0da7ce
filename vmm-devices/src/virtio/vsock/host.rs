//! The host's ends: sockets that never block, and what waits for them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::line::{LONGEST, Line, Said};
use crate::worker::Wakeup;

/// What is told of one turn at most.
const EVENTS: usize = 64;

/// The sockets that are watched: one descriptor for a worker, which is readable when one of them has news.
pub(super) struct Watch(Epoll);

/// News of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    /// What it is called.
    pub(super) id: u64,
    /// There may be something to read, or an end.
    pub(super) readable: bool,
    /// There may be room to write.
    pub(super) writable: bool,
    /// The other end is gone, both ways.
    pub(super) hung_up: bool,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new()?))
    }

    /// Watches `socket`, called `id`, for what comes, once each time: whoever is told reads until there is nothing.
    pub(super) fn add(&self, socket: &impl AsRawFd, id: u64) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(EDGE, id))
    }

    /// From now on also, or not any more, for room; `id` may be another one than before.
    pub(super) fn change(&self, socket: &impl AsRawFd, id: u64, room: bool) -> io::Result<()> {
        let events = if room { EDGE | EventSet::OUT } else { EDGE };
        self.0.ctl(ControlOperation::Modify, socket.as_raw_fd(), EpollEvent::new(events, id))
    }

    /// Watches `listener`, called `id`, as long as somebody knocks.
    pub(super) fn listen(&self, listener: &UnixListener, id: u64) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(EventSet::IN, id))
    }

    /// Watches `listener` no more.
    pub(super) fn ignore(&self, listener: &UnixListener) -> io::Result<()> {
        self.0.ctl(ControlOperation::Delete, listener.as_raw_fd(), EpollEvent::default())
    }

    /// What is new, without waiting; no more than a turn's worth.
    pub(super) fn news(&self) -> io::Result<Vec<News>> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.0.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            count => count?,
        };
        let news = events.iter().take(count).map(|event| {
            let set = event.event_set();
            let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
            News {
                id: event.data(),
                readable: hung_up || set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
                writable: hung_up || set.contains(EventSet::OUT),
                hung_up,
            }
        });
        Ok(news.collect())
    }
}

/// News come once, not as long as they are so: a socket whose data nobody has room for is not told of again and again.
const EDGE: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Wakeup for Watch {
    fn take(&self) -> u64 {
        // Readable until all news are taken.
        1
    }
}

/// What a read has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing is there at the moment.
    Nothing,
    /// Nothing will come any more.
    End,
}

/// A connected socket, and what could not be written to it yet.
#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    backlog: VecDeque<u8>,
    /// There may be something to read.
    pub(super) readable: bool,
    /// The other end is gone, both ways; what it has sent may still be there.
    pub(super) hung_up: bool,
    /// Whether it is watched for room.
    pub(super) wants_room: bool,
}

impl Stream {
    /// `socket` does not block.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, backlog: VecDeque::new(), readable: false, hung_up: false, wants_room: false }
    }

    /// Bytes that wait to be written.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Reads into `buffer`, which has room.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Read> {
        match retry(|| recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)) {
            Ok(0) => {
                self.readable = false;
                Ok(Read::End)
            }
            Ok(count) => Ok(Read::Bytes(count)),
            Err(Errno::EAGAIN) => {
                self.readable = false;
                Ok(Read::Nothing)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads what belongs to `line`, and nothing behind it.
    pub(super) fn read_line(&mut self, line: &mut Line) -> io::Result<Said> {
        let mut buffer = [0; LONGEST];
        loop {
            let room = buffer.get_mut(..line.room()).unwrap_or_default();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
            let seen = match retry(|| recv(self.socket.as_raw_fd(), room, flags)) {
                Ok(0) => return Ok(Said::Other),
                Ok(count) => count,
                Err(Errno::EAGAIN) => return Ok(Said::More),
                Err(errno) => return Err(errno.into()),
            };
            let (used, said) = line.take(buffer.get(..seen).unwrap_or_default());
            let used = buffer.get_mut(..used).unwrap_or_default();
            // Nobody else reads: all of it is still there.
            retry(|| recv(self.socket.as_raw_fd(), used, MsgFlags::MSG_DONTWAIT))?;
            if said != Said::More {
                return Ok(said);
            }
        }
    }

    /// Writes as much of `bytes` as the host takes, behind what waits already; the rest waits too. Returns how many bytes the
    /// host has taken, of all of them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = if self.backlog.is_empty() { self.offer(bytes)? } else { 0 };
        self.backlog.extend(bytes.get(taken..).unwrap_or_default());
        Ok(taken)
    }

    /// Writes as much of what waits as the host takes; returns how many bytes those are.
    pub(super) fn flush(&mut self) -> io::Result<usize> {
        let mut taken = 0_usize;
        while let (first, _) = self.backlog.as_slices()
            && !first.is_empty()
        {
            let wanted = first.len();
            let count = self.offer(first)?;
            self.backlog.drain(..count.min(wanted));
            taken = taken.saturating_add(count);
            if count < wanted {
                return Ok(taken);
            }
        }
        // Most connections never need it.
        self.backlog = VecDeque::new();
        Ok(taken)
    }

    /// Forgets what waits.
    pub(super) fn discard(&mut self) {
        self.backlog = VecDeque::new();
    }

    /// Sends no more.
    pub(super) fn shut_write(&self) {
        // It fails only where there is no other end any more.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Reads no more.
    pub(super) fn shut_read(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Read);
    }

    fn offer(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0_usize;
        while let Some(rest) = bytes.get(taken..)
            && !rest.is_empty()
        {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match retry(|| send(self.socket.as_raw_fd(), rest, flags)) {
                Ok(count) => taken = taken.saturating_add(count),
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(taken)
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
