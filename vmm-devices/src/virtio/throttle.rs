//! `Throttle`: the rate limiter of a disk, or of one direction of a network device, for whichever of its queues, in the order in
//! which they come to wait.
//!
//! Only the first in the line takes from the buckets: small requests of other queues would otherwise take what is refilled while
//! a large one waits for it, again and again. When the first has what it needs, or goes, the next is rung.
//!
//! It may outlive the device: a machine that starts again finds the buckets as it has left them.
//!
//! Lock order: innermost. Bells are rung after it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::rate_limiter::{Limits, Moment, RateLimiter};
use crate::sync::lock;

/// What may pass, and who waits.
#[derive(Debug)]
pub struct Throttle {
    since: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limiter: RateLimiter,
    /// The bells of the queues that wait, each once.
    line: VecDeque<Arc<EventFd>>,
}

/// Until when a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) enum Wait {
    /// So long, and then it is to ask again.
    For(Duration),
    /// Until the bell is rung: others came before.
    Turn,
}

impl Throttle {
    /// With full buckets, and nobody who waits.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        let state = State { limiter: RateLimiter::new(limits, 0), line: VecDeque::new() };
        Arc::new(Self { since: Instant::now(), state: Mutex::new(state) })
    }

    /// Other limits from now on, for those who wait too: what `change` makes of those of before. Returns what they are.
    pub fn change(&self, change: impl FnOnce(Limits) -> Limits) -> Limits {
        let mut state = lock(&self.state);
        let limits = change(state.limiter.limits());
        state.limiter.update(limits, self.now());
        let first = state.line.front().cloned();
        drop(state);
        ring(first);
        limits
    }

    /// Whether an operation of so many bytes may go now, of the queue that has `bell`. If not, the queue is in the line until it
    /// is admitted or [leaves](Self::leave).
    pub(in crate::virtio) fn admit(&self, bell: &Arc<EventFd>, bytes: u64) -> Result<(), Wait> {
        let mut state = lock(&self.state);
        if state.line.front().is_some_and(|first| !Arc::ptr_eq(first, bell)) {
            state.join(bell);
            return Err(Wait::Turn);
        }
        if let Err(wait) = state.limiter.admit(bytes, self.now()) {
            state.join(bell);
            return Err(Wait::For(wait));
        }
        let next = state.leave(bell);
        drop(state);
        ring(next);
        Ok(())
    }

    /// The queue that has `bell` does not wait any more.
    pub(in crate::virtio) fn leave(&self, bell: &Arc<EventFd>) {
        let next = lock(&self.state).leave(bell);
        ring(next);
    }

    fn now(&self) -> Moment {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl State {
    fn join(&mut self, bell: &Arc<EventFd>) {
        if !self.line.iter().any(|waiting| Arc::ptr_eq(waiting, bell)) {
            self.line.push_back(Arc::clone(bell));
        }
    }

    /// Takes `bell` out of the line. Who has become the first by that is to be rung.
    fn leave(&mut self, bell: &Arc<EventFd>) -> Option<Arc<EventFd>> {
        let was_first = self.line.front().is_some_and(|first| Arc::ptr_eq(first, bell));
        self.line.retain(|waiting| !Arc::ptr_eq(waiting, bell));
        self.line.front().filter(|_| was_first).cloned()
    }
}

fn ring(bell: Option<Arc<EventFd>>) {
    if let Some(bell) = bell {
        // Its counter cannot be full.
        let _ = bell.write(1);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;
    use crate::rate_limiter::Limit;

    fn bells<const COUNT: usize>() -> [Arc<EventFd>; COUNT] {
        std::array::from_fn(|_| Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()))
    }

    /// A bucket of so many bytes that is not filled again in the time of a test.
    fn bytes(capacity: u64) -> Limits {
        let limit = Limit::new(capacity, Duration::from_secs(1 << 30), 0).unwrap();
        Limits { bytes: Some(limit), operations: None }
    }

    fn is_rung(bell: &EventFd) -> bool {
        bell.read().is_ok()
    }

    #[test]
    fn a_large_request_that_waits_is_not_overtaken_by_small_ones_of_other_queues() {
        let throttle = Throttle::new(bytes(100));
        let [large, small, third] = bells();
        assert_eq!(throttle.admit(&small, 10), Ok(()));
        assert!(matches!(throttle.admit(&large, 100), Err(Wait::For(_))));
        // There would be enough for these.
        assert_eq!(throttle.admit(&small, 10), Err(Wait::Turn));
        assert_eq!(throttle.admit(&third, 1), Err(Wait::Turn));
        assert_eq!(throttle.admit(&small, 10), Err(Wait::Turn));
        assert!(!is_rung(&large));
        throttle.change(|_| Limits::default());
        assert_eq!((is_rung(&large), is_rung(&small)), (true, false));
        assert_eq!(throttle.admit(&large, 100), Ok(()));
        assert_eq!((is_rung(&small), is_rung(&third)), (true, false));
        // Its next one comes after those that wait.
        assert_eq!(throttle.admit(&large, 1), Err(Wait::Turn));
        assert_eq!(throttle.admit(&small, 10), Ok(()));
        assert_eq!((is_rung(&third), throttle.admit(&third, 1)), (true, Ok(())));
        assert_eq!((is_rung(&large), throttle.admit(&large, 1)), (true, Ok(())));
    }

    #[test]
    fn a_queue_that_goes_keeps_nobody_waiting() {
        let throttle = Throttle::new(bytes(100));
        let [first, second, third] = bells();
        assert!(matches!(throttle.admit(&first, 100), Ok(())));
        assert!(matches!(throttle.admit(&first, 100), Err(Wait::For(_))));
        assert_eq!(throttle.admit(&second, 1), Err(Wait::Turn));
        assert_eq!(throttle.admit(&third, 1), Err(Wait::Turn));
        throttle.leave(&second);
        assert_eq!((is_rung(&second), is_rung(&third)), (false, false));
        throttle.leave(&first);
        assert!(is_rung(&third));
        assert!(matches!(throttle.admit(&third, 1), Err(Wait::For(_))));
    }
}
