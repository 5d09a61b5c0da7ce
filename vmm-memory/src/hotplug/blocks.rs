//! `Blocks`: which blocks are plugged, and in which runs, each of which has a memory slot. Pure bookkeeping.
//!
//! A run never leaves its chunk. What is plugged becomes a run of its own beside those that are there, so that nothing
//! leaves; only when that makes a chunk whole do its runs become one. What is unplugged leaves the rest of its run behind. KVM
//! does not change the size of a live slot: a run that becomes larger or smaller leaves and comes.

use std::collections::BTreeMap;
use std::ops::Range;

/// Whether blocks are plugged (virtio 1.3, 5.15.6: the answers to a request for the state).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// All are.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

/// Numbers of blocks: the runs that a change takes away, and those that it brings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) leave: Vec<Range<u64>>,
    pub(super) come: Vec<Range<u64>>,
}

/// The runs of blocks that are plugged.
#[derive(Debug)]
pub(super) struct Blocks {
    /// First block and the one behind the last.
    runs: BTreeMap<u64, u64>,
    count: u64,
    chunk: u64,
}

impl Blocks {
    /// `count` blocks of which none is plugged, `chunk` of them in a chunk.
    pub(super) fn new(count: u64, chunk: u64) -> Self {
        Self { runs: BTreeMap::new(), count, chunk: chunk.max(1) }
    }

    /// Of `blocks`, at least one.
    pub(super) fn state(&self, blocks: &Range<u64>) -> BlockState {
        let plugged: u64 = self.parts(blocks).map(|(_, part)| length(&part)).sum();
        match plugged {
            0 => BlockState::Unplugged,
            all if all == length(blocks) => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }

    /// How many are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.runs().map(|run| length(&run)).sum()
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|(&start, &end)| start..end)
    }

    /// What plugs `blocks`, none of which is plugged.
    pub(super) fn to_plug(&self, blocks: &Range<u64>) -> Difference {
        let mut difference = Difference::default();
        let mut start = blocks.start;
        while start < blocks.end {
            let chunk = self.chunk_of(start);
            let piece = start..chunk.end.min(blocks.end);
            start = piece.end;
            let runs: Vec<_> = self.parts(&chunk).map(|(run, _)| run).collect();
            let plugged: u64 = runs.iter().map(length).sum();
            if plugged.saturating_add(length(&piece)) == length(&chunk) {
                difference.leave.extend(runs);
                difference.come.push(chunk);
            } else {
                difference.come.push(piece);
            }
        }
        difference
    }

    /// What unplugs `blocks`.
    pub(super) fn to_unplug(&self, blocks: &Range<u64>) -> Difference {
        let mut difference = Difference::default();
        for (run, part) in self.parts(blocks) {
            let rest = [run.start..part.start, part.end..run.end];
            difference.come.extend(rest.into_iter().filter(|rest| !rest.is_empty()));
            difference.leave.push(run);
        }
        difference
    }

    /// Notes that it has happened.
    pub(super) fn apply(&mut self, difference: &Difference) {
        for run in &difference.leave {
            self.runs.remove(&run.start);
        }
        self.runs.extend(difference.come.iter().map(|run| (run.start, run.end)));
    }

    /// The runs that have some of `blocks`, each with these.
    fn parts(&self, blocks: &Range<u64>) -> impl Iterator<Item = (Range<u64>, Range<u64>)> {
        let before = self.runs.range(..=blocks.start).next_back().map_or(blocks.start, |(&start, _)| start);
        let runs = self.runs.range(before..blocks.end.max(before)).map(|(&start, &end)| start..end);
        let blocks = blocks.clone();
        let parts = runs.map(move |run| {
            let part = run.start.max(blocks.start)..run.end.min(blocks.end);
            (run, part)
        });
        parts.filter(|(_, part)| !part.is_empty())
    }

    /// The chunk of a block; the last one may be shorter.
    fn chunk_of(&self, block: u64) -> Range<u64> {
        let start = block.saturating_sub(block.checked_rem(self.chunk).unwrap_or(0));
        start..start.saturating_add(self.chunk).min(self.count)
    }
}

fn length(blocks: &Range<u64>) -> u64 {
    blocks.end.saturating_sub(blocks.start)
}

#[cfg(test)]
#[cfg(not(loom))]
#[expect(clippy::single_range_in_vec_init, reason = "lists of runs, some of one run")]
mod tests {
    use super::*;

    /// Ten blocks, four in a chunk, of which `plugged` are plugged by one change each.
    fn blocks(plugged: &[Range<u64>]) -> Blocks {
        let mut blocks = Blocks::new(10, 4);
        for part in plugged {
            assert_eq!(blocks.state(part), BlockState::Unplugged);
            let difference = blocks.to_plug(part);
            blocks.apply(&difference);
        }
        blocks
    }

    fn difference(leave: &[Range<u64>], come: &[Range<u64>]) -> Difference {
        Difference { leave: leave.to_vec(), come: come.to_vec() }
    }

    #[test]
    fn what_is_plugged_is_divided_at_chunks_and_leaves_others_alone() {
        let blocks = blocks(&[1..3]);
        assert_eq!(blocks.to_plug(&(3..4)), difference(&[], &[3..4]));
        assert_eq!(blocks.to_plug(&(3..10)), difference(&[], &[3..4, 4..8, 8..10]));
    }

    #[test]
    fn a_chunk_that_becomes_whole_becomes_one_run() {
        let blocks = blocks(&[1..3, 3..4]);
        assert_eq!(blocks.to_plug(&(0..1)), difference(&[1..3, 3..4], &[0..4]));
        let blocks = self::blocks(&[9..10]);
        assert_eq!(blocks.to_plug(&(8..9)), difference(&[9..10], &[8..10]), "the last one is shorter");
    }

    #[test]
    fn what_is_unplugged_leaves_the_rest_of_its_run_and_other_runs() {
        let blocks = blocks(&[0..4, 4..8, 8..9]);
        assert_eq!(blocks.to_unplug(&(1..3)), difference(&[0..4], &[0..1, 3..4]));
        assert_eq!(blocks.to_unplug(&(2..9)), difference(&[0..4, 4..8, 8..9], &[0..2]));
        assert_eq!(blocks.to_unplug(&(8..9)), difference(&[8..9], &[]));
        assert_eq!(blocks.to_unplug(&(9..10)), difference(&[], &[]));
    }

    #[test]
    fn the_state_of_blocks_is_that_of_all_of_them() {
        let blocks = blocks(&[1..3, 5..6]);
        for (part, state) in [
            (1..3, BlockState::Plugged),
            (2..3, BlockState::Plugged),
            (3..5, BlockState::Unplugged),
            (0..1, BlockState::Unplugged),
            (2..4, BlockState::Mixed),
            (0..10, BlockState::Mixed),
        ] {
            assert_eq!(blocks.state(&part), state, "{part:?}");
        }
        assert_eq!(blocks.plugged(), 3);
    }
}
