//! `Hints`: a round of free page hinting (virtio 1.3, section 5.5.6.5), without queues. Pure.
//!
//! The device asks by a command id in the configuration. The driver says that id, names free pages, and says STOP when it has no
//! more. It holds these pages until the device is done with them.
//!
//! What was hinted at is not given back to the host. A driver may use a page that it has named again without a word, also while the hint is
//! still in the ring (section 5.5.6.5.1), and Linux does so when memory is short: a discard would then take what has been written
//! since. The device may do so only with pages that were not written to since the id was set. Who copies the RAM knows them. To
//! give free memory back there is free page reporting, where the driver waits for the device.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmm_memory::RamRange;

use super::PAGE;

/// VIRTIO_BALLOON_CMD_ID_STOP: the end of a round, in the driver's words.
const STOP: u32 = 0;
/// VIRTIO_BALLOON_CMD_ID_DONE: the driver may have its pages back.
const DONE: u32 = 1;
/// The smallest id of a round.
const FIRST: u32 = 2;

/// Most ranges that are kept. Linux names blocks of 4 MiB, which become one range where they touch.
const MOST_RANGES: usize = 1 << 16;

/// How far a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintState {
    /// There is none: the driver holds no pages for it.
    #[default]
    Idle,
    /// The driver was asked, and has not begun.
    Asked,
    /// It names pages.
    Hinting,
    /// It has named all that it has, and holds them.
    Complete,
}

/// The round of the moment.
#[derive(Debug, Default)]
pub(super) struct Hints {
    state: HintState,
    /// The id of this round, or of the last one.
    id: u32,
    /// Where a range begins, and the first byte behind it; no two touch.
    ranges: BTreeMap<u64, u64>,
}

impl Hints {
    /// A new round, whatever became of the one before.
    pub(super) fn begin(&mut self) {
        self.id = self.id.wrapping_add(1).max(FIRST);
        self.state = HintState::Asked;
        self.ranges.clear();
    }

    /// The round is over: the driver has its pages, and what it has named is forgotten.
    pub(super) fn end(&mut self) {
        self.state = HintState::Idle;
        self.ranges.clear();
    }

    pub(super) fn state(&self) -> HintState {
        self.state
    }

    /// What the configuration says (section 5.5.4).
    pub(super) fn command(&self) -> u32 {
        if self.state == HintState::Idle { DONE } else { self.id }
    }

    /// The driver says an id. What it names behind one that is not that of this round is not for it.
    pub(super) fn hear(&mut self, id: u32) {
        use HintState::{Asked, Complete, Hinting};
        self.state = match (self.state, id) {
            (Asked | Hinting, id) if id == self.id => Hinting,
            (Hinting, STOP) => Complete,
            (Hinting, _) => Asked,
            (state, _) => state,
        };
    }

    /// The driver names a range; how many bytes of whole pages are kept of it.
    pub(super) fn take(&mut self, start: u64, length: u64) -> u64 {
        if self.state != HintState::Hinting {
            return 0;
        }
        let end = start.saturating_add(length) / PAGE;
        let (end, start) =
            (end.saturating_mul(PAGE), start.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX));
        if start >= end {
            return 0;
        }
        self.insert(start, end)
    }

    fn insert(&mut self, mut start: u64, mut end: u64) -> u64 {
        let length = end.saturating_sub(start);
        // Those that it touches: one that begins before it, and those that begin in it or at its end.
        let before = self.ranges.range(..start).next_back().filter(|(_, ends)| **ends >= start);
        let mut joined: Vec<_> = before.into_iter().map(|(begins, _)| *begins).collect();
        joined.extend(self.ranges.range(start..=end).map(|(begins, _)| *begins));
        if joined.is_empty() && self.ranges.len() >= MOST_RANGES {
            return 0;
        }
        for begins in joined {
            start = start.min(begins);
            end = end.max(self.ranges.remove(&begins).unwrap_or(end));
        }
        self.ranges.insert(start, end);
        length
    }

    /// What was named in this round.
    pub(super) fn ranges(&self) -> Vec<RamRange> {
        let range = |(&start, &end): (&u64, &u64)| RamRange { start, size: end.saturating_sub(start) };
        self.ranges.iter().map(range).collect()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn hinting() -> Hints {
        let mut hints = Hints::default();
        hints.begin();
        hints.hear(hints.command());
        hints
    }

    #[test]
    fn a_round_goes_from_the_question_to_the_end() {
        let mut hints = Hints::default();
        assert_eq!((hints.state(), hints.command()), (HintState::Idle, DONE));
        hints.begin();
        assert_eq!((hints.state(), hints.command()), (HintState::Asked, FIRST));
        assert_eq!(hints.take(0, PAGE), 0);
        hints.hear(FIRST);
        assert_eq!((hints.state(), hints.take(0, 2 * PAGE)), (HintState::Hinting, 2 * PAGE));
        hints.hear(STOP);
        assert_eq!(
            (hints.state(), hints.command(), hints.take(8 * PAGE, PAGE)),
            (HintState::Complete, FIRST, 0)
        );
        assert_eq!(hints.ranges(), [RamRange { start: 0, size: 2 * PAGE }]);
        hints.end();
        assert_eq!((hints.state(), hints.command(), hints.ranges().len()), (HintState::Idle, DONE, 0));
        hints.hear(FIRST);
        assert_eq!(hints.state(), HintState::Idle);
        hints.begin();
        assert_eq!(hints.command(), FIRST + 1);
    }

    #[test]
    fn pages_with_the_id_of_another_round_are_not_taken() {
        let mut hints = hinting();
        assert_eq!(hints.take(0, PAGE), PAGE);
        hints.begin();
        assert!(hints.ranges().is_empty());
        // The driver has not seen the new id yet.
        assert_eq!(hints.take(0, PAGE), 0);
        for stale in [FIRST, STOP, DONE, u32::MAX] {
            hints.hear(stale);
            assert_eq!((hints.state(), hints.take(0, PAGE)), (HintState::Asked, 0), "{stale}");
        }
        hints.hear(FIRST + 1);
        assert_eq!(hints.take(0, PAGE), PAGE);
        hints.hear(FIRST);
        assert_eq!((hints.state(), hints.take(PAGE, PAGE)), (HintState::Asked, 0));
    }

    #[test]
    fn ids_that_wrap_are_none_that_mean_something_else() {
        let mut hints = Hints { id: u32::MAX - 1, ..Hints::default() };
        hints.begin();
        assert_eq!(hints.command(), u32::MAX);
        hints.begin();
        assert_eq!(hints.command(), FIRST);
    }

    #[test]
    fn fault_b9_of_ranges_that_do_not_touch_a_bounded_number_is_kept() {
        let mut hints = hinting();
        for index in 0..MOST_RANGES as u64 {
            assert_eq!(hints.take(index * 2 * PAGE, PAGE), PAGE);
        }
        let beyond = MOST_RANGES as u64 * 2 * PAGE;
        assert_eq!((hints.take(beyond, PAGE), hints.ranges().len()), (0, MOST_RANGES));
        // What joins others is kept.
        assert_eq!(hints.take(PAGE, PAGE), PAGE);
        assert_eq!((hints.take(beyond, PAGE), hints.ranges().len()), (PAGE, MOST_RANGES));
    }

    #[test]
    fn only_whole_pages_are_taken() {
        let mut hints = hinting();
        assert_eq!([hints.take(1, PAGE), hints.take(0, PAGE - 1), hints.take(1, 2 * PAGE)], [0, 0, PAGE]);
        assert_eq!([hints.take(u64::MAX, u64::MAX), hints.take(u64::MAX - 5, 6), hints.take(0, 0)], [0; 3]);
        assert_eq!(hints.ranges(), [RamRange { start: PAGE, size: PAGE }]);
    }

    proptest! {
        #[test]
        fn what_is_named_is_a_set_of_pages(named in prop::collection::vec((0..60_u64, 0..20_u64), 0..60)) {
            let (mut hints, mut expected) = (hinting(), BTreeSet::new());
            for (start, count) in named {
                hints.take(start * PAGE, count * PAGE);
                expected.extend(start..start + count);
                let ranges = hints.ranges();
                let pages = |range: &RamRange| range.start / PAGE..(range.start + range.size) / PAGE;
                prop_assert_eq!(ranges.iter().flat_map(pages).collect::<BTreeSet<_>>(), expected.clone());
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end().unwrap() < pair[1].start));
            }
        }
    }
}
