//! `Deadline`: shuts a socket down whose other end does not answer in time.
//!
//! The vhost crate waits for answers without a limit, and takes the time-out of a socket for a reason to wait again. The end of the
//! connection it takes for what it is.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_core::thread::spawn;

use super::calls::VHOST_USER;
use crate::sync::lock;

/// A thread that looks at the clock while somebody waits for the other end. Dropped, it is gone.
pub(super) struct Deadline {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Of who waits at the moment.
    until: Option<Instant>,
    has_passed: bool,
    ends: bool,
}

impl Deadline {
    /// For `socket`.
    ///
    /// # Errors
    /// No thread, or no descriptor.
    pub(super) fn new(socket: &UnixStream) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (socket, watched) = (socket.try_clone()?, Arc::clone(&shared));
        let thread = spawn(&VHOST_USER, VHOST_USER.name, move || watched.watch(&socket))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Does what waits for the other end. When `time` is over, the socket is shut down, so that it comes to an end.
    pub(super) fn during<T>(&self, time: Duration, wait: impl FnOnce() -> T) -> T {
        self.set(Instant::now().checked_add(time));
        let result = wait();
        self.set(None);
        result
    }

    /// Whether it was shut down here.
    pub(super) fn has_passed(&self) -> bool {
        lock(&self.shared.state).has_passed
    }

    fn set(&self, until: Option<Instant>) {
        lock(&self.shared.state).until = until;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn watch(&self, socket: &UnixStream) {
        let mut state = lock(&self.state);
        while !state.ends {
            let left = state.until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    state.has_passed = true;
                    state.until = None;
                    // It fails only where the other end has gone.
                    let _ = socket.shutdown(Shutdown::Both);
                    state
                }
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        lock(&self.shared.state).ends = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn who_waits_for_nobody_comes_to_an_end_and_who_is_answered_is_left_alone() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let deadline = Deadline::new(&here).unwrap();
        deadline.during(Duration::from_secs(600), || ());
        assert!(!deadline.has_passed());
        let mut byte = [0];
        assert_eq!(deadline.during(Duration::from_millis(1), || here.read(&mut byte)).unwrap(), 0);
        assert!(deadline.has_passed());
        drop(there);
    }
}
