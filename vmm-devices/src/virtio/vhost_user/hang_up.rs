//! `HangUp`: wakes a worker when the other end of a connection goes, and for nothing else: what comes is for whoever has asked for it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::worker::Wakeup;

/// The connections that are watched; one that was closed here is so no more.
pub(super) struct HangUp(Epoll);

impl HangUp {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new()?))
    }

    /// Wakes once when the other end of `socket` goes.
    pub(super) fn watch(&self, socket: &impl AsRawFd) -> io::Result<()> {
        // Together with what epoll always tells of: that it is gone both ways.
        let events = EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.0.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(events, 0))
    }
}

impl AsRawFd for HangUp {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Wakeup for HangUp {
    fn take(&self) -> u64 {
        // Told once, it is not readable until another one goes.
        let count = self.0.wait(0, &mut [EpollEvent::default()]);
        count.ok().and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_the_end_of_a_connection_wakes_and_once() {
        let hang_up = HangUp::new().unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        hang_up.watch(&here).unwrap();
        there.write_all(b"not asked for").unwrap();
        assert_eq!(hang_up.take(), 0);
        drop(there);
        assert_eq!([hang_up.take(), hang_up.take()], [1, 0]);
    }
}
