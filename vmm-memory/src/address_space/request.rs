//! `Request`: what a transaction is asked for.

use std::sync::Arc;

use crate::block::RamBlock;
use crate::change::Change;
use crate::range::RamRange;

/// What a transaction is asked for.
pub(crate) enum Request {
    /// Changes of RAM that is not plugged, each on top of the ones before it.
    Changes(Vec<Change>),
    /// Other regions of memory that is plugged.
    Replug(Replug),
}

/// The difference that plugging and unplugging makes. What is in both lists stays, but the guest would notice that it is
/// missing for a moment, so the machine has to stand still then.
#[derive(Default)]
pub(crate) struct Replug {
    /// Regions that leave, as they were mapped.
    pub(crate) leave: Vec<RamRange>,
    /// What comes, and where, inside of a range that is reserved.
    pub(crate) come: Vec<(u64, Arc<RamBlock>)>,
}
