//! `Timer`: a moment for which a worker waits (timerfd).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::worker::Wakeup;

/// A timer that is not running at first.
#[derive(Debug)]
pub struct Timer(TimerFd);

impl Timer {
    /// A timer on the clock that neither jumps nor stands still (CLOCK_MONOTONIC).
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))
    }

    /// Signals once, in `delay`; whatever was set before is forgotten.
    ///
    /// # Errors
    /// The host's.
    pub fn set(&self, delay: Duration) -> io::Result<()> {
        // Of 0 the timer would not run.
        let delay = delay.clamp(Duration::from_nanos(1), Duration::from_secs(1 << 32));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(delay));
        Ok(self.0.set(expiration, TimerSetTimeFlags::empty())?)
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Wakeup for Timer {
    fn take(&self) -> u64 {
        // Not blocking: an error says that it has not come to its end.
        self.0.wait().map_or(0, |()| 1)
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_timer_signals_once_and_only_after_it_was_set() {
        let timer = Timer::new().unwrap();
        assert_eq!(timer.take(), 0);
        timer.set(Duration::ZERO).unwrap();
        let mut fds = [PollFd::new(timer.0.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::NONE).unwrap(), 1);
        assert_eq!((timer.take(), timer.take()), (1, 0));
        timer.set(Duration::MAX).unwrap();
        assert_eq!(timer.take(), 0);
    }
}
