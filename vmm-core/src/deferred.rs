//! `Deferred`: a device access whose end the device announces later.
//!
//! A handler that would have to wait (a reset, for the device's worker) returns a [`Deferred`] and keeps the
//! [`Completer`]. The vCPU leaves its read section and sleeps until the completer is used; it can be paused and stopped
//! meanwhile.

use std::fmt;

use crate::sync::{Arc, Mutex, lock};

type Wake = Box<dyn FnOnce() + Send>;

enum State {
    Open(Option<Wake>),
    Complete,
}

/// Makes the two ends of a deferred access.
pub fn deferred() -> (Completer, Deferred) {
    let state = Arc::new(Mutex::new(State::Open(None)));
    (Completer(Arc::clone(&state)), Deferred(state))
}

/// The device's end. Dropped, it completes the access: a device that has gone keeps no vCPU.
pub struct Completer(Arc<Mutex<State>>);

impl Completer {
    /// Lets the access end. From any thread; never blocks.
    pub fn complete(self) {
        drop(self);
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *lock(&self.0), State::Complete);
        // Called without the lock.
        if let State::Open(Some(wake)) = before {
            wake();
        }
    }
}

/// The vCPU's end.
#[must_use = "an access that nobody waits for is not deferred"]
pub struct Deferred(Arc<Mutex<State>>);

impl Deferred {
    /// Calls `wake` when the access may end, on the completing thread, or at once on this one.
    pub fn on_complete(self, wake: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.0);
        match &mut *state {
            State::Open(waiting) => *waiting = Some(Box::new(wake)),
            State::Complete => {
                drop(state);
                wake();
            }
        }
    }

    /// One access of two parts, both of which must end.
    pub fn and(self, other: Self) -> Self {
        let (completer, both) = deferred();
        self.on_complete(move || other.on_complete(move || completer.complete()));
        both
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deferred")
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn counting(deferred: Deferred) -> std::sync::Arc<AtomicUsize> {
        let calls = std::sync::Arc::new(AtomicUsize::new(0));
        let seen = std::sync::Arc::clone(&calls);
        deferred.on_complete(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        calls
    }

    #[test]
    fn the_waker_is_called_once_whichever_side_comes_first() {
        let (completer, access) = deferred();
        let calls = counting(access);
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        completer.complete();
        assert_eq!(calls.load(Ordering::Relaxed), 1);

        let (completer, access) = deferred();
        completer.complete();
        assert_eq!(counting(access).load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_device_that_has_gone_ends_its_accesses() {
        let (completer, access) = deferred();
        let calls = counting(access);
        drop(completer);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_access_of_two_parts_ends_with_the_later() {
        let ((first, one), (second, other)) = (deferred(), deferred());
        let calls = counting(one.and(other));
        second.complete();
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        first.complete();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
