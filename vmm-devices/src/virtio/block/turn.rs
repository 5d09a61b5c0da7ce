//! How much goes into one turn of a queue, and what follows from what it leaves.

use crate::Progress;

/// Chains that are taken in one turn at most.
pub(super) const BATCH: usize = 64;

/// No more chains are taken in a turn when those that were have so many bytes: the kernel copies what is in the page cache in the
/// system call of the turn, while other queues wait.
pub(super) const BATCH_BYTES: u64 = 4 << 20;

/// So many chains of a driver that makes more available meanwhile are given back with one interrupt at most: it has others to go on
/// with, of a queue of 32 still half.
pub(super) const UNTOLD: u16 = 16;

/// A turn of more bytes does not wait for the next one to interrupt.
const UNTOLD_BYTES: u64 = BATCH_BYTES / UNTOLD as u64;

/// What a turn leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing that it could go on with.
    Nothing,
    /// Chains that did not go into it.
    Left,
    /// It has taken all, so many bytes; more has come meanwhile.
    Came(u64),
}

impl Rest {
    pub(super) fn progress(self) -> Progress {
        match self {
            Self::Nothing => Progress::Done,
            Self::Left | Self::Came(_) => Progress::More,
        }
    }

    /// Whether the next turn may interrupt for this one too, with so many chains that the driver was not told of.
    pub(super) fn waits(self, untold: u16) -> bool {
        matches!(self, Self::Came(bytes) if bytes <= UNTOLD_BYTES && untold < UNTOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_waits_only_for_chains_that_come_all_the_time_and_not_for_long() {
        assert!(Rest::Came(4096).waits(1));
        assert!(Rest::Came(UNTOLD_BYTES).waits(UNTOLD - 1));
        assert!(!Rest::Came(4096).waits(UNTOLD), "half of what the driver has");
        assert!(!Rest::Came(UNTOLD_BYTES + 1).waits(1), "the next turn may be as long");
        assert!(!Rest::Left.waits(1) && !Rest::Nothing.waits(1), "nobody takes another turn at once");
    }

    #[test]
    fn an_interrupt_waits_only_where_another_turn_is_due() {
        for rest in [Rest::Nothing, Rest::Left, Rest::Came(0)] {
            assert!(!rest.waits(0) || rest.progress() == Progress::More, "{rest:?}");
        }
    }
}
