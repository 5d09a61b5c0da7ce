//! `Moderation`: when an interrupt waits for chains that the driver has not made available yet.
//!
//! A request for what is in the page cache has ended when it was submitted, so the worker is through with what there is before the
//! driver has made the next one available: each would cost an interrupt and a call to the host. What a driver has done it is
//! likely to do again. One that was seen with so many chains beside each other, none of which it was told of, has others to
//! go on with, and is waited for until there are as many; one that waits for each of its chains is interrupted at once.

use super::turn::UNTOLD;

/// Most interrupts between two at which the driver is waited for in vain, to learn whether it has more by now.
const MOST_BETWEEN: u16 = 256;

/// What was learnt about one driver.
#[derive(Debug)]
pub(super) struct Moderation {
    /// So many chains it had beside each other without being told of any.
    reach: u16,
    /// Interrupts at its reach until it is waited for there too, in case it has grown.
    pending: u16,
    /// What that begins with.
    between: u16,
}

impl Moderation {
    pub(super) fn new() -> Self {
        Self { reach: 1, pending: 0, between: 1 }
    }

    /// The driver has `chains` beside each other, and was told of none.
    pub(super) fn seen(&mut self, chains: u16) {
        let chains = chains.min(UNTOLD);
        if chains > self.reach {
            *self = Self { reach: chains, pending: 0, between: 1 };
        }
    }

    /// How many more are worth waiting for, now that it is to be told of `untold`.
    pub(super) fn waits_for(&mut self, untold: u16) -> Option<u16> {
        if untold == 0 || untold >= UNTOLD || self.reach < 2 {
            return None;
        }
        if untold >= self.reach && self.pending > 0 {
            self.pending = self.pending.saturating_sub(1);
            return None;
        }
        // Half, so that the driver has as many to go on with while these are served.
        Some(self.reach.div_euclid(2))
    }

    /// Nothing came while it was waited for.
    pub(super) fn in_vain(&mut self, untold: u16) {
        if untold < self.reach {
            self.reach = untold;
        } else {
            self.between = self.between.saturating_mul(2).min(MOST_BETWEEN);
            self.pending = self.between;
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// What a driver that always has `depth` chains beside each other costs in `chains` of them: interrupts, and waits that
    /// were in vain. It makes one available in the time that one takes to be served.
    fn costs(moderation: &mut Moderation, depth: u16, chains: u32) -> (u32, u32) {
        let (mut served, mut interrupts, mut vain, mut untold) = (0, 0, 0, 0);
        while served < chains {
            (served, untold) = (served + 1, untold + 1);
            moderation.seen(untold);
            let left = depth - untold;
            match moderation.waits_for(untold) {
                Some(_) if left > 0 => moderation.seen(untold + 1),
                Some(_) => {
                    moderation.in_vain(untold);
                    vain += 1;
                    (interrupts, untold) = (interrupts + 1, 0);
                }
                // As it happens now and then: there is one already.
                None if left > 0 && served % 3 == 0 && untold < UNTOLD => moderation.seen(untold + 1),
                None => (interrupts, untold) = (interrupts + 1, 0),
            }
        }
        (interrupts, vain)
    }

    #[test]
    fn a_driver_that_waits_for_each_chain_is_never_kept_waiting() {
        assert_eq!(costs(&mut Moderation::new(), 1, 1000), (1000, 0));
    }

    #[test]
    fn a_driver_with_few_chains_is_kept_waiting_less_and_less() {
        for depth in 2..=8 {
            let mut moderation = Moderation::new();
            costs(&mut moderation, depth, 10_000);
            let (interrupts, vain) = costs(&mut moderation, depth, 10_000);
            assert!(interrupts <= 10_000 / u32::from(depth) + 1, "{depth}: {interrupts}");
            assert!(vain <= interrupts / u32::from(MOST_BETWEEN) + 1, "{depth}: {vain} of {interrupts}");
        }
    }

    #[test]
    fn a_driver_with_many_chains_has_an_interrupt_for_sixteen() {
        for depth in [UNTOLD, 32, 256] {
            let mut moderation = Moderation::new();
            costs(&mut moderation, depth, 1000);
            let (interrupts, vain) = costs(&mut moderation, depth, 16_000);
            assert!(interrupts <= 1001 && vain == 0, "{depth}: {interrupts}, {vain} in vain");
        }
    }

    #[test]
    fn a_driver_that_has_fewer_chains_than_before_is_waited_for_once() {
        let mut moderation = Moderation::new();
        costs(&mut moderation, 32, 1000);
        let (interrupts, vain) = costs(&mut moderation, 1, 100);
        assert_eq!((interrupts, vain), (100, 1));
        let (interrupts, _) = costs(&mut moderation, 32, 1600);
        assert!(interrupts < 150, "it is known again: {interrupts}");
    }

    #[test]
    fn nothing_is_waited_for_where_nobody_is_to_be_told() {
        let mut moderation = Moderation::new();
        moderation.seen(8);
        assert_eq!((moderation.waits_for(0), moderation.waits_for(UNTOLD)), (None, None));
        assert_eq!(moderation.waits_for(1), Some(4));
    }
}
