//! `Asserted`: how many devices assert a level-triggered line, and what that means for the wire to KVM.
//!
//! A line is high while any device asserts it. The count is an atomic: neither asserting nor taking back waits for another
//! device.

use crate::sync::{AtomicU32, Ordering};

/// How many devices assert a line.
///
/// Signed: of a device that asserts and takes back on two threads at a time, the taking back may be counted first.
#[derive(Debug)]
pub(super) struct Asserted(AtomicU32);

impl Asserted {
    pub(super) fn none() -> Self {
        Self(AtomicU32::new(0))
    }

    /// One more. True if the line was low: then the wire is to be raised.
    pub(super) fn add(&self) -> bool {
        self.0.fetch_add(1, Ordering::AcqRel) == 0
    }

    /// One less. True if the line is low now.
    pub(super) fn remove(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub(super) fn is_high(&self) -> bool {
        self.0.load(Ordering::Acquire).cast_signed() > 0
    }

    /// For a wire that takes both levels: sets it to what the count says, until both agree. Whoever changes the count calls
    /// this after it; the last call to set the wire has seen the last count.
    pub(super) fn drive(&self, set: impl Fn(bool)) {
        loop {
            let high = self.is_high();
            set(high);
            // A read-modify-write is what reads the newest value.
            if (self.0.fetch_add(0, Ordering::SeqCst).cast_signed() > 0) == high {
                return;
            }
        }
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use std::sync::Arc;

    use loom::sync::Mutex;
    use loom::thread;

    use super::*;

    /// A line of KVM's with a resample descriptor.
    #[derive(Default)]
    struct Latch {
        high: bool,
        resample: bool,
    }

    struct Line {
        asserted: Asserted,
        latch: Mutex<Latch>,
    }

    impl Line {
        fn signal(&self) {
            self.latch.lock().unwrap().high = true;
        }

        fn assert(&self) {
            if self.asserted.add() {
                self.signal();
            }
        }

        /// The guest's end of interrupt.
        fn acknowledge(&self) {
            let mut latch = self.latch.lock().unwrap();
            if std::mem::take(&mut latch.high) {
                latch.resample = true;
            }
        }

        /// One wake-up of the thread that listens to the resample descriptor.
        fn listen(&self) {
            if std::mem::take(&mut self.latch.lock().unwrap().resample) && self.asserted.is_high() {
                self.signal();
            }
        }
    }

    /// Two devices share a line that one of them asserts; the guest acknowledges beside `change`.
    fn shared_line(change: fn(&Line)) {
        loom::model(move || {
            let line = Arc::new(Line { asserted: Asserted::none(), latch: Mutex::default() });
            line.assert();
            let other = Arc::clone(&line);
            let device = thread::spawn(move || change(&other));
            let other = Arc::clone(&line);
            let listener = thread::spawn(move || other.listen());
            line.acknowledge();
            device.join().unwrap();
            listener.join().unwrap();
            line.listen();
            let high = line.latch.lock().unwrap().high;
            assert!(high || !line.asserted.is_high(), "a device asserts a line that is low");
        });
    }

    #[test]
    fn loom_a_line_that_is_acknowledged_rises_again_while_a_device_asserts_it() {
        shared_line(Line::assert);
        shared_line(|line| {
            line.assert();
            line.asserted.remove();
        });
        shared_line(|line| {
            line.asserted.remove();
            line.assert();
        });
    }

    #[test]
    #[should_panic(expected = "a device asserts a line that is low")]
    fn loom_must_fail_signal_before_the_line_counts_as_asserted() {
        shared_line(|line| {
            line.asserted.remove();
            if !line.asserted.is_high() {
                line.signal();
            }
            line.asserted.add();
        });
    }

    /// A wire that takes both levels, driven by two devices.
    fn driven_line(change: fn(&Asserted, &Mutex<bool>)) {
        loom::model(move || {
            let line = Arc::new((Asserted::none(), Mutex::new(false)));
            let other = Arc::clone(&line);
            line.0.add();
            line.0.drive(|high| *line.1.lock().unwrap() = high);
            let device = thread::spawn(move || {
                if other.0.remove() {
                    change(&other.0, &other.1);
                }
            });
            if line.0.add() {
                change(&line.0, &line.1);
            }
            device.join().unwrap();
            assert_eq!(*line.1.lock().unwrap(), line.0.is_high(), "wire and devices disagree");
        });
    }

    #[test]
    fn loom_the_wire_ends_at_the_level_that_the_devices_leave() {
        driven_line(|asserted, wire| asserted.drive(|high| *wire.lock().unwrap() = high));
    }

    #[test]
    #[should_panic(expected = "wire and devices disagree")]
    fn loom_must_fail_wire_set_once() {
        driven_line(|asserted, wire| {
            let high = asserted.is_high();
            *wire.lock().unwrap() = high;
        });
    }
}
