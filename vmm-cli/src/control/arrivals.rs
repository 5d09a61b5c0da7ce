//! `Arrivals`: which of the descriptors that have come over a stream belong to which of its lines.
//!
//! The kernel hands descriptors over with the bytes they were sent with, and never reads past those at once: of what was read, the last
//! byte was sent with them, and perhaps not the first. So they belong to the line of the last byte, which holds as long as no one
//! sends the end of a request, or more than one, together with descriptors.

use std::collections::VecDeque;

/// Most descriptors of one request.
pub const MOST_DESCRIPTORS: usize = 64;

/// What has come and was not taken yet, in the order of the lines.
#[derive(Debug)]
pub struct Arrivals<T> {
    /// Lines that have ended.
    ended: u64,
    /// Lines that were taken.
    taken: u64,
    bags: VecDeque<(u64, Bag<T>)>,
}

/// What belongs to one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Bag<T> {
    /// In the order in which they were sent.
    pub descriptors: Vec<T>,
    /// Not all that were sent are here.
    pub fault: Option<Fault>,
}

/// Why some are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There were more than [`MOST_DESCRIPTORS`].
    TooMany,
    /// This process had no room for them.
    Lost,
}

impl<T> Default for Arrivals<T> {
    fn default() -> Self {
        Self { ended: 0, taken: 0, bags: VecDeque::new() }
    }
}

impl<T> Default for Bag<T> {
    fn default() -> Self {
        Self { descriptors: Vec::new(), fault: None }
    }
}

impl<T> Arrivals<T> {
    /// `bytes` have come at once and `descriptors` with them, not all that were sent if they were `cut`. Those that are too many for
    /// this stream are dropped.
    pub fn came(&mut self, bytes: &[u8], descriptors: impl IntoIterator<Item = T>, cut: bool) {
        let Some(last) = bytes.last() else { return };
        self.ended += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let line = self.ended - u64::from(*last == b'\n');
        let mut descriptors = descriptors.into_iter().peekable();
        if descriptors.peek().is_none() && !cut {
            return;
        }
        let held: usize = self.bags.iter().map(|(_, bag)| bag.descriptors.len()).sum();
        let mut room = MOST_DESCRIPTORS.saturating_sub(held);
        if self.bags.back().is_none_or(|(of, _)| *of != line) {
            self.bags.push_back((line, Bag::default()));
        }
        let Some((_, bag)) = self.bags.back_mut() else { return };
        for descriptor in descriptors {
            match room.checked_sub(1) {
                Some(left) => {
                    room = left;
                    bag.descriptors.push(descriptor);
                }
                None => bag.fault = Some(Fault::TooMany),
            }
        }
        if cut {
            // The kernel has had no place for more of one message, or this process none for more at all.
            let fault = if room == 0 { Fault::TooMany } else { Fault::Lost };
            bag.fault.get_or_insert(fault);
        }
    }

    /// What belongs to the next line, which is complete and taken with this.
    pub fn take(&mut self) -> Bag<T> {
        let line = self.taken;
        self.taken += 1;
        let is_here = self.bags.front().is_some_and(|(of, _)| *of == line);
        let bag = if is_here { self.bags.pop_front() } else { None };
        bag.map(|(_, bag)| bag).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bag(descriptors: impl IntoIterator<Item = u32>) -> Bag<u32> {
        Bag { descriptors: descriptors.into_iter().collect(), fault: None }
    }

    #[test]
    fn descriptors_belong_to_the_line_of_the_last_byte_that_came_with_them() {
        let mut arrivals = Arrivals::default();
        arrivals.came(b"one\ntwo\n", [1, 2], false);
        assert_eq!([arrivals.take(), arrivals.take()], [bag([]), bag([1, 2])]);
        arrivals.came(b"thr", [3], false);
        arrivals.came(b"e", [], false);
        arrivals.came(b"e\n", [4], false);
        assert_eq!(arrivals.take(), bag([3, 4]));
        arrivals.came(b"four\n", [], false);
        assert_eq!(arrivals.take(), bag([]));
    }

    #[test]
    fn fault_c10_no_more_than_a_request_may_have_are_kept_and_the_request_is_told() {
        let mut arrivals = Arrivals::default();
        arrivals.came(b"x", 0..60, false);
        arrivals.came(b"x", 60..70, false);
        arrivals.came(b"x\n", 70..80, false);
        let taken = arrivals.take();
        assert_eq!(taken.fault, Some(Fault::TooMany));
        assert!(taken.descriptors.into_iter().eq(0..64));
        arrivals.came(b"y\n", 0..64, true);
        assert_eq!(arrivals.take().fault, Some(Fault::TooMany));
        arrivals.came(b"z\n", 0..3, true);
        assert_eq!(arrivals.take(), Bag { fault: Some(Fault::Lost), ..bag(0..3) });
        arrivals.came(b"\n", [7], false);
        assert_eq!(arrivals.take(), bag([7]));
    }

    proptest! {
        /// Requests, each sent in pieces of which some have descriptors, and read in whatever way the kernel may put them together.
        #[test]
        fn each_line_has_what_was_sent_with_it(
            requests in prop::collection::vec(prop::collection::vec((1_usize..5, 0_u32..3), 1..4), 1..12),
            glue in prop::collection::vec(any::<bool>(), 64),
        ) {
            let mut arrivals = Arrivals::default();
            let (mut next, mut expected, mut found) = (0, Vec::new(), Vec::new());
            let (mut unread, mut glue) = (Vec::new(), glue.into_iter().cycle());
            let mut complete = 0;
            for pieces in &requests {
                let mut own = Vec::new();
                for (index, &(length, count)) in pieces.iter().enumerate() {
                    let ends = index + 1 == pieces.len();
                    unread.extend(std::iter::repeat_n(b'x', length));
                    if ends {
                        unread.push(b'\n');
                        complete += 1;
                    }
                    let sent: Vec<u32> = (next..next + count).collect();
                    next += count;
                    own.extend(&sent);
                    // A reading ends behind the bytes that have descriptors, or anywhere.
                    if count > 0 || glue.next() == Some(true) {
                        arrivals.came(&unread, sent, false);
                        unread.clear();
                        while complete > 0 {
                            found.push(arrivals.take());
                            complete -= 1;
                        }
                    }
                }
                expected.push(bag(own));
            }
            arrivals.came(&unread, [], false);
            while complete > 0 {
                found.push(arrivals.take());
                complete -= 1;
            }
            prop_assert_eq!(found, expected);
        }
    }
}
