//! `Worker`: a thread that serves one doorbell.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_core::{VmEvent, VmEvents};
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
    /// Starts a thread named `device` that calls `serve` with the number of rings each time `doorbell` was rung. A worker
    /// that cannot go on, because `serve` has panicked or the host fails it, says so to `events`.
    pub fn spawn(
        device: &'static str,
        doorbell: Arc<EventFd>,
        events: VmEvents,
        serve: impl FnMut(u64) + Send + 'static,
    ) -> Result<Self, WorkerError> {
        Self::start(device, doorbell, events, serve).map_err(|source| WorkerError { device, source })
    }

    fn start(
        device: &'static str,
        doorbell: Arc<EventFd>,
        events: VmEvents,
        mut serve: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        for (fd, token) in [(stop.as_raw_fd(), STOP), (doorbell.as_raw_fd(), DOORBELL)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        let mut work = move || -> io::Result<()> {
            while wait(&epoll)? == DOORBELL {
                if let Ok(rings) = doorbell.read() {
                    serve(rings);
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name(device.into()).spawn(move || {
            // A device whose worker has panicked is not used again: the machine ends.
            let failure = match catch_unwind(AssertUnwindSafe(&mut work)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("the worker of {device} cannot wait for its doorbell: {error}"),
                Err(_) => format!("the worker of {device} panicked"),
            };
            events.send(VmEvent::Internal(failure));
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

const STOP: u64 = 0;
const DOORBELL: u64 = 1;

/// The token to serve next; stopping goes first.
fn wait(epoll: &Epoll) -> io::Result<u64> {
    let mut events = [EpollEvent::default(); 2];
    loop {
        match epoll.wait(-1, &mut events) {
            Ok(count) => {
                return Ok(events.iter().take(count).map(EpollEvent::data).min().unwrap_or(DOORBELL));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The counter of a fresh eventfd cannot be full.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // Panics are caught and reported by the thread.
            let _ = thread.join();
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
        let events = VmEvents::new().unwrap();
        let serve = move |rings| sender.send(rings).unwrap();
        let worker = Worker::spawn("test", doorbell.clone(), events.clone(), serve).unwrap();
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
        assert_eq!(events.get(), None);
    }

    #[test]
    fn fault_d3_a_panicking_worker_ends_the_machine() {
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let events = VmEvents::new().unwrap();
        let serve = |_| panic!("a bug in a device");
        let worker = Worker::spawn("test", doorbell.clone(), events.clone(), serve).unwrap();
        doorbell.write(1).unwrap();
        while events.get().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(events.get(), Some(&VmEvent::Internal("the worker of test panicked".into())));
        drop(worker);
    }
}
