//! Credit of one connection, each way (virtio 1.3, section 5.10.6.3): pure counters, which run free and wrap.

/// Most bytes that are under way to a guest, whatever it says it has room for: an honest one never claims to have taken more than
/// was sent, by which one that lies is told from it.
const MOST_IN_FLIGHT: u32 = 1 << 30;

/// What the guest may send: room that was promised to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    /// Bytes there is room for.
    allocated: u32,
    /// Bytes that have come.
    received: u32,
    /// Those of them that were passed on.
    forwarded: u32,
    /// The same, as far as the guest was told.
    told: u32,
}

impl Incoming {
    pub(super) fn new(allocated: u32) -> Self {
        Self { allocated, received: 0, forwarded: 0, told: 0 }
    }

    /// Bytes that wait to be passed on.
    pub(super) fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// `length` bytes have come. `false`: there was no room for them, and they are not taken.
    pub(super) fn take(&mut self, length: u32) -> bool {
        let fits = length <= self.allocated.saturating_sub(self.held());
        if fits {
            self.received = self.received.wrapping_add(length);
        }
        fits
    }

    /// `length` of the bytes that wait were passed on.
    pub(super) fn forward(&mut self, length: u32) {
        debug_assert!(length <= self.held(), "more is passed on than has come");
        self.forwarded = self.forwarded.wrapping_add(length);
    }

    /// Whether the guest is to be told of room it does not know of: it believes that no more than half is left.
    pub(super) fn is_news(&self) -> bool {
        let believed = self.allocated.saturating_sub(self.received.wrapping_sub(self.told));
        self.told != self.forwarded && believed <= self.allocated / 2
    }

    /// What the guest is told now: `buf_alloc` and `fwd_cnt`.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.allocated, self.forwarded)
    }
}

/// What may be sent to the guest: room that it has promised.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    allocated: u32,
    forwarded: u32,
    sent: u32,
    /// The guest was asked for room, and has not said since that there is another.
    asked: bool,
}

impl Outgoing {
    /// With what the guest has said so far.
    pub(super) fn new(allocated: u32) -> Self {
        Self { allocated, forwarded: 0, sent: 0, asked: false }
    }

    /// Bytes that may be sent.
    pub(super) fn room(&self) -> u32 {
        self.allocated.min(MOST_IN_FLIGHT).saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// The guest says how much room it has, and how much it has taken. `false`: it claims to have taken what was never sent.
    ///
    /// Packets may overtake each other in a guest with several CPUs: what one says may be older than what is known, which takes
    /// room away until the next one.
    #[must_use]
    pub(super) fn learn(&mut self, allocated: u32, forwarded: u32) -> bool {
        if (allocated, forwarded) != (self.allocated, self.forwarded) {
            self.asked = false;
        }
        self.allocated = allocated;
        self.forwarded = forwarded;
        self.sent.wrapping_sub(forwarded) <= MOST_IN_FLIGHT
    }

    /// `length` bytes are sent, for which there is room.
    pub(super) fn send(&mut self, length: u32) {
        debug_assert!(length <= self.room(), "more is sent than there is room for");
        self.sent = self.sent.wrapping_add(length);
    }

    /// Whether to ask the guest for room: there is none, and it was not asked yet.
    pub(super) fn ask(&mut self) -> bool {
        self.room() == 0 && !std::mem::replace(&mut self.asked, true)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A connection that has been in use for long.
    fn incoming(allocated: u32, before: u32) -> Incoming {
        Incoming { allocated, received: before, forwarded: before, told: before }
    }

    fn outgoing(allocated: u32, before: u32) -> Outgoing {
        Outgoing { allocated, forwarded: before, sent: before, asked: false }
    }

    #[test]
    fn fault_b10_what_there_is_no_room_for_is_not_taken() {
        let mut credit = incoming(100, u32::MAX - 30);
        assert!(!credit.take(101));
        assert!(credit.take(60) && !credit.take(41) && credit.take(40) && credit.take(0));
        assert!(!credit.take(u32::MAX) && credit.held() == 100);
        credit.forward(10);
        assert!(!credit.take(11) && credit.take(10));
    }

    #[test]
    fn a_guest_is_told_of_room_when_half_of_what_it_knows_is_gone() {
        let mut credit = incoming(100, u32::MAX);
        assert!(credit.take(49));
        credit.forward(49);
        assert!(!credit.is_news());
        assert!(credit.take(1));
        assert!(credit.is_news());
        assert_eq!(credit.tell(), (100, 48));
        assert!(!credit.is_news());
        credit.forward(1);
        // It knows of 99, and no more was taken: it can send.
        assert!(!credit.is_news());
    }

    #[test]
    fn a_guest_is_asked_for_room_once_for_each_answer() {
        let mut credit = outgoing(10, 0);
        assert!(!credit.ask());
        credit.send(10);
        assert!(credit.ask() && !credit.ask());
        assert!(credit.learn(10, 0) && !credit.ask());
        assert!(credit.learn(10, 4) && credit.room() == 4);
        credit.send(4);
        assert!(credit.ask());
    }

    #[test]
    fn fault_b10_a_guest_that_takes_its_room_back_gets_nothing_and_one_that_took_what_was_not_sent_is_found()
    {
        let mut credit = outgoing(100, u32::MAX - 10);
        credit.send(50);
        assert!(credit.learn(20, u32::MAX - 10) && credit.room() == 0);
        assert!(credit.learn(0, u32::MAX - 10) && credit.room() == 0);
        assert!(credit.learn(100, 39) && credit.room() == 100);
        assert!(!credit.learn(100, 40));
        assert!(credit.learn(u32::MAX, 39) && credit.room() == MOST_IN_FLIGHT);
    }

    proptest! {
        /// Against counters that never wrap.
        #[test]
        fn counters_that_wrap_say_what_those_say_that_do_not(
            before in any::<u32>(),
            allocated in 0..100_000_u32,
            steps in prop::collection::vec((any::<bool>(), 0..60_000_u32), 0..100),
        ) {
            let (mut ours, mut theirs) = (incoming(allocated, before), outgoing(allocated, before));
            let (mut received, mut forwarded, mut told) = (0_u64, 0_u64, 0_u64);
            for (comes, length) in steps {
                if comes {
                    // The other side sends as much as it may.
                    let length = length.min(theirs.room());
                    prop_assert_eq!(u64::from(theirs.room()), u64::from(allocated) - (received - told));
                    theirs.send(length);
                    prop_assert!(ours.take(length));
                    received += u64::from(length);
                } else {
                    let length = length.min(ours.held());
                    ours.forward(length);
                    forwarded += u64::from(length);
                }
                prop_assert_eq!(u64::from(ours.held()), received - forwarded);
                if ours.is_news() {
                    let (allocated, count) = ours.tell();
                    prop_assert!(theirs.learn(allocated, count));
                    told = forwarded;
                }
                // Whoever may send nothing has all its bytes waiting.
                prop_assert!(theirs.room() > allocated / 2 || told == forwarded);
            }
        }
    }
}
