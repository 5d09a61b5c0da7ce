//! `Worker`: a thread that serves one doorbell.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a worker cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the worker of {device}")]
pub struct WorkerError {
    /// The device it was for.
    pub device: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A running worker. Dropped, it is stopped and joined.
#[derive(Debug)]
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread named `device` that calls `serve` with the number of rings each time `doorbell` was rung.
    pub fn spawn(
        device: &'static str,
        doorbell: Arc<EventFd>,
        serve: impl FnMut(u64) + Send + 'static,
    ) -> Result<Self, WorkerError> {
        Self::start(device, doorbell, serve).map_err(|source| WorkerError { device, source })
    }

    fn start(
        device: &'static str,
        doorbell: Arc<EventFd>,
        mut serve: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        for (fd, token) in [(stop.as_raw_fd(), STOP), (doorbell.as_raw_fd(), DOORBELL)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        let thread = std::thread::Builder::new().name(device.into()).spawn(move || {
            while wait(&epoll, device) == Some(DOORBELL) {
                if let Ok(rings) = doorbell.read() {
                    serve(rings);
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

const STOP: u64 = 0;
const DOORBELL: u64 = 1;

/// The token to serve next; stopping goes first. `None`: epoll failed, which is logged.
fn wait(epoll: &Epoll, device: &str) -> Option<u64> {
    let mut events = [EpollEvent::default(); 2];
    loop {
        match epoll.wait(-1, &mut events) {
            Ok(count) => return events.iter().take(count).map(EpollEvent::data).min(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(device, %error, "epoll failed; the device is no longer served");
                return None;
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The counter of a fresh eventfd cannot be full.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a device worker panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn every_ring_is_served_once() {
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (sender, served) = channel();
        let worker =
            Worker::spawn("test", doorbell.clone(), move |rings| sender.send(rings).unwrap()).unwrap();
        let mut total = 0;
        for rings in 1..=100 {
            doorbell.write(rings).unwrap();
            total += rings;
        }
        let mut seen = 0;
        while seen < total {
            seen += served.recv().unwrap();
        }
        drop(worker);
        assert_eq!((seen, served.try_recv().is_err()), (total, true));
    }
}
