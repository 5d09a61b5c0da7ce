//! `MaskState`: mask bit and pending bit of a vector that user space triggers, and the race between the two.
//!
//! PCI Local Bus 3.0, section 6.8.2: a masked vector that is triggered sets its pending bit and sends nothing; unmasked, a
//! vector whose pending bit is set sends once and clears it. No trigger is lost between the two: the trigger sets the
//! pending bit and then looks at the mask again, the unmask clears the mask and then takes the pending bit. Both go through
//! the pending bit by an exchange, one after the other: if the trigger is first, the unmask finds the bit; if the unmask is
//! first, the trigger has acquired the open mask. The exchanges are in the place of fences between a store and a load. Who
//! takes the bit injects, so only one does.

use crate::sync::{AtomicBool, Ordering};

/// Mask and pending bit of one vector.
#[derive(Debug)]
pub(super) struct MaskState {
    /// Its store in `unmask` is released by the exchange of `pending` there and acquired by the one in `trigger`.
    masked: AtomicBool,
    /// Changed by exchanges only, each of which acquires and releases.
    pending: AtomicBool,
}

impl MaskState {
    pub(super) fn masked() -> Self {
        Self { masked: AtomicBool::new(true), pending: AtomicBool::new(false) }
    }

    /// Injects now, or at the unmask. No lock, no allocation; from any thread.
    #[inline]
    pub(super) fn trigger(&self, inject: impl FnOnce()) {
        if !self.masked.load(Ordering::Acquire) {
            return inject();
        }
        self.set_pending();
        if !self.masked.load(Ordering::Relaxed) && self.take_pending() {
            inject();
        }
    }

    /// A trigger that begins after the return injects nothing. One that runs beside it came before the mask, or sets the
    /// pending bit.
    pub(super) fn mask(&self) {
        self.masked.store(true, Ordering::SeqCst);
    }

    /// A trigger that begins after the return injects; if one has come while the vector was masked, this injects.
    pub(super) fn unmask(&self, inject: impl FnOnce()) {
        // Released: who sees the vector unmasked sees the route that was made for it.
        self.masked.store(false, Ordering::Release);
        if self.take_pending() {
            inject();
        }
    }

    pub(super) fn is_masked(&self) -> bool {
        self.masked.load(Ordering::Acquire)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Clears the pending bit and returns what it was.
    pub(super) fn take_pending(&self) -> bool {
        self.pending.swap(false, Ordering::AcqRel)
    }

    pub(super) fn set_pending(&self) {
        self.pending.swap(true, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// One thread: the two bits of the specification, word by word.
        #[test]
        fn each_step_does_what_the_specification_says(steps in prop::collection::vec(0..4, 0..60)) {
            let (state, injected) = (MaskState::masked(), Cell::new(0));
            let (mut masked, mut pending, mut expected) = (true, false, 0);
            for step in steps {
                let inject = || injected.set(injected.get() + 1);
                match step {
                    0 => {
                        state.trigger(inject);
                        if masked { pending = true } else { expected += 1 }
                    }
                    1 => {
                        state.mask();
                        masked = true;
                    }
                    2 => {
                        state.unmask(inject);
                        masked = false;
                        expected += u32::from(std::mem::take(&mut pending));
                    }
                    _ => prop_assert_eq!(state.take_pending(), std::mem::take(&mut pending)),
                }
                let seen = (state.is_masked(), state.is_pending(), injected.get());
                prop_assert_eq!(seen, (masked, pending, expected));
            }
        }
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    use super::*;

    type Trigger = fn(&MaskState, &AtomicUsize);

    fn trigger(state: &MaskState, injected: &AtomicUsize) {
        state.trigger(|| count(injected));
    }

    fn count(injected: &AtomicUsize) {
        injected.fetch_add(1, Ordering::Relaxed);
    }

    /// Two triggers beside `guest`, which leaves the vector unmasked: afterwards nothing is pending, and of the
    /// triggers at least one and at most both have arrived.
    fn race(trigger: Trigger, guest: fn(&MaskState, &AtomicUsize)) {
        loom::model(move || {
            let shared = std::sync::Arc::new((MaskState::masked(), AtomicUsize::new(0)));
            let threads = [0, 1].map(|_| {
                let shared = std::sync::Arc::clone(&shared);
                thread::spawn(move || trigger(&shared.0, &shared.1))
            });
            guest(&shared.0, &shared.1);
            for thread in threads {
                thread.join().unwrap();
            }
            let (state, injected) = (&shared.0, shared.1.load(Ordering::Relaxed));
            assert!(!state.is_pending(), "an interrupt is stuck behind an open mask");
            assert!((1..=2).contains(&injected), "{injected} interrupts for two triggers");
        });
    }

    #[test]
    fn loom_no_trigger_is_lost_beside_an_unmask() {
        race(trigger, |state, injected| state.unmask(|| count(injected)));
    }

    #[test]
    fn loom_no_trigger_is_lost_when_the_mask_is_closed_and_opened_again() {
        race(trigger, |state, injected| {
            state.unmask(|| count(injected));
            state.mask();
            state.unmask(|| count(injected));
        });
    }

    /// A vector that stays masked: what did not get through beside the mask is pending.
    #[test]
    fn loom_a_trigger_beside_a_mask_is_sent_or_pending() {
        loom::model(|| {
            let shared = std::sync::Arc::new((MaskState::masked(), AtomicUsize::new(0)));
            shared.0.unmask(|| unreachable!("nothing was pending"));
            let other = std::sync::Arc::clone(&shared);
            let thread = thread::spawn(move || trigger(&other.0, &other.1));
            shared.0.mask();
            thread.join().unwrap();
            let injected = shared.1.load(Ordering::Relaxed);
            assert_eq!(injected + usize::from(shared.0.is_pending()), 1);
        });
    }

    #[test]
    #[should_panic(expected = "an interrupt is stuck behind an open mask")]
    fn loom_must_fail_trigger_without_a_second_look_at_the_mask() {
        race(
            |state, injected| {
                if state.is_masked() {
                    state.set_pending();
                } else {
                    count(injected);
                }
            },
            |state, injected| state.unmask(|| count(injected)),
        );
    }

    #[test]
    #[should_panic(expected = "an interrupt is stuck behind an open mask")]
    fn loom_must_fail_trigger_that_does_not_acquire_what_the_unmask_released() {
        race(
            |state, injected| {
                if !state.is_masked() {
                    return count(injected);
                }
                state.pending.swap(true, Ordering::Release);
                if !state.is_masked() && state.take_pending() {
                    count(injected);
                }
            },
            |state, injected| state.unmask(|| count(injected)),
        );
    }

    #[test]
    #[should_panic(expected = "an interrupt is stuck behind an open mask")]
    fn loom_must_fail_unmask_that_looks_at_the_pending_bit_first() {
        race(trigger, |state, injected| {
            let pending = state.take_pending();
            state.masked.store(false, Ordering::SeqCst);
            if pending {
                count(injected);
            }
        });
    }

    #[test]
    #[should_panic(expected = "interrupts for two triggers")]
    fn loom_must_fail_pending_bit_that_is_read_and_cleared_in_two_steps() {
        race(
            |state, injected| {
                if !state.is_masked() {
                    return count(injected);
                }
                state.set_pending();
                if !state.is_masked() && state.pending.fetch_or(false, Ordering::AcqRel) {
                    state.pending.swap(false, Ordering::AcqRel);
                    count(injected);
                }
            },
            |state, injected| {
                state.masked.store(false, Ordering::Release);
                if state.pending.fetch_or(false, Ordering::AcqRel) {
                    state.pending.swap(false, Ordering::AcqRel);
                    count(injected);
                }
            },
        );
    }
}
