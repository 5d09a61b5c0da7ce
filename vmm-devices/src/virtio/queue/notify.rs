//! When to notify whom: both halves of the notification protocol, apart from the memory that they are about.
//!
//! Either half is a store of one side and a load of the other, twice and crosswise, with a full fence between the store and the
//! load of the same side (virtio 1.3, sections 2.7.7.1, 2.7.10 and 2.7.13.4.1):
//!
//! * the device says from where on it wants a notification, fence, looks at the available index; the driver moves the index,
//!   fence, looks at what the device wants. One of them sees the other, so no chain waits for a device that sleeps;
//! * the device moves the used index, fence, looks at what the driver wants; the driver says that it wants an interrupt, fence,
//!   looks at the used index. One of them sees the other, so no driver sleeps beside a chain that is used.

use crate::sync::{Ordering, fence};

/// What the driver wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// Of every used chain.
    Always,
    /// Of none (VIRTQ_AVAIL_F_NO_INTERRUPT).
    Never,
    /// Once the used index has gone past this one (`used_event`).
    After(u16),
}

/// The words of the rings that the protocol is about. Loads and stores are relaxed: the fences here order them.
pub(super) trait Words {
    type Error;

    /// The driver's index in the available ring.
    fn available(&self) -> Result<u16, Self::Error>;

    /// Says that a notification is wanted once the driver's index goes past `next`.
    fn ask_for_notification(&self, next: u16) -> Result<(), Self::Error>;

    /// What the driver wants.
    fn interrupt(&self) -> Result<Interrupt, Self::Error>;
}

/// The device has taken everything before `next` and is about to sleep. `true`: there is more, it may not.
pub(super) fn rest<W: Words>(words: &W, next: u16) -> Result<bool, W::Error> {
    words.ask_for_notification(next)?;
    // Pairs with the driver's fence between its index and its look at what the device wants.
    fence(Ordering::SeqCst);
    Ok(words.available()? != next)
}

/// Whether the driver wants to be told that the used index went from `told` to `used`.
pub(super) fn needs_interrupt<W: Words>(words: &W, told: u16, used: u16) -> Result<bool, W::Error> {
    if told == used {
        return Ok(false);
    }
    // Pairs with the driver's fence between what it wants and its look at the used index.
    fence(Ordering::SeqCst);
    Ok(match words.interrupt()? {
        Interrupt::Always => true,
        Interrupt::Never => false,
        Interrupt::After(event) => passes(event, told, used),
    })
}

/// Whether an index that went from `old` to `new` has gone past `event` (virtio 1.3, section 2.7.7.1).
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_index_passes_what_it_is_counted_over(old in any::<u16>(), steps in 0..100_u16, event in any::<u16>()) {
            let new = old.wrapping_add(steps);
            let counted = (0..steps).any(|step| old.wrapping_add(step) == event);
            prop_assert_eq!(passes(event, old, new), counted);
        }
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicBool, AtomicU16};
    use loom::thread;

    use super::*;

    /// The rings, as far as the protocol looks at them; `told` is the notification or the interrupt.
    struct Rings {
        available: AtomicU16,
        available_event: AtomicU16,
        used: AtomicU16,
        used_event: AtomicU16,
        told: AtomicBool,
    }

    /// An event that no index of a model goes past.
    const FAR: u16 = 0x8000;

    impl Rings {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                available: AtomicU16::new(0),
                available_event: AtomicU16::new(FAR),
                used: AtomicU16::new(0),
                used_event: AtomicU16::new(FAR),
                told: AtomicBool::new(false),
            })
        }

        fn tell(&self) {
            self.told.store(true, Ordering::Release);
        }

        fn is_told(&self) -> bool {
            self.told.load(Ordering::Acquire)
        }
    }

    impl Words for Rings {
        type Error = Infallible;

        fn available(&self) -> Result<u16, Infallible> {
            Ok(self.available.load(Ordering::Relaxed))
        }

        fn ask_for_notification(&self, next: u16) -> Result<(), Infallible> {
            self.available_event.store(next, Ordering::Relaxed);
            Ok(())
        }

        fn interrupt(&self) -> Result<Interrupt, Infallible> {
            Ok(Interrupt::After(self.used_event.load(Ordering::Relaxed)))
        }
    }

    /// A driver that makes two chains available, as the specification has it.
    fn submit(rings: &Rings) {
        for index in 0..2 {
            rings.available.store(index + 1, Ordering::Release);
            fence(Ordering::SeqCst);
            if passes(rings.available_event.load(Ordering::Relaxed), index, index + 1) {
                rings.tell();
            }
        }
    }

    /// A driver that wants to sleep until something is used; whether it may.
    fn wait(rings: &Rings) -> bool {
        rings.used_event.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        rings.used.load(Ordering::Relaxed) == 0
    }

    /// A device that takes what is there and sleeps when `rest` says that it may. In the end it was told, or has taken all.
    fn notification(rest: fn(&Rings, u16) -> bool) {
        loom::model(move || {
            let rings = Rings::new();
            let driver = {
                let rings = Arc::clone(&rings);
                thread::spawn(move || submit(&rings))
            };
            let mut taken = rings.available.load(Ordering::Acquire);
            while rest(&rings, taken) {
                taken = rings.available.load(Ordering::Acquire);
            }
            driver.join().unwrap();
            assert!(taken == 2 || rings.is_told(), "a chain waits for a device that sleeps");
        });
    }

    /// A device that uses a chain and interrupts when `needs_interrupt` says so, beside a driver that wants to sleep.
    fn interrupt(needs_interrupt: fn(&Rings, u16, u16) -> bool) {
        loom::model(move || {
            let rings = Rings::new();
            let device = {
                let rings = Arc::clone(&rings);
                thread::spawn(move || {
                    rings.used.store(1, Ordering::Release);
                    if needs_interrupt(&rings, 0, 1) {
                        rings.tell();
                    }
                })
            };
            let sleeps = wait(&rings);
            device.join().unwrap();
            assert!(!sleeps || rings.is_told(), "a driver sleeps beside a chain that is used");
        });
    }

    #[test]
    fn loom_no_chain_waits_for_a_device_that_sleeps() {
        notification(|rings, next| rest(rings, next).unwrap());
    }

    #[test]
    fn loom_no_driver_sleeps_beside_a_used_chain() {
        interrupt(|rings, told, used| needs_interrupt(rings, told, used).unwrap());
    }

    #[test]
    #[should_panic(expected = "a chain waits for a device that sleeps")]
    fn loom_must_fail_rest_without_a_fence() {
        notification(|rings, next| {
            rings.ask_for_notification(next).unwrap();
            rings.available().unwrap() != next
        });
    }

    #[test]
    #[should_panic(expected = "a chain waits for a device that sleeps")]
    fn loom_must_fail_rest_without_a_second_look() {
        notification(|rings, next| {
            rings.ask_for_notification(next).unwrap();
            fence(Ordering::SeqCst);
            false
        });
    }

    #[test]
    #[should_panic(expected = "a chain waits for a device that sleeps")]
    fn loom_must_fail_rest_that_looks_before_it_asks() {
        notification(|rings, next| {
            let more = rings.available().unwrap() != next;
            fence(Ordering::SeqCst);
            rings.ask_for_notification(next).unwrap();
            more
        });
    }

    #[test]
    #[should_panic(expected = "a driver sleeps beside a chain that is used")]
    fn loom_must_fail_interrupt_without_a_fence() {
        interrupt(
            |rings, told, used| matches!(rings.interrupt(), Ok(Interrupt::After(event)) if passes(event, told, used)),
        );
    }
}
