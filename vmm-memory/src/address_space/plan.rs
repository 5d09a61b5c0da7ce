//! `Plan`: the regions that a transaction takes out and puts in, and how far it is with them.

use std::sync::Arc;

use crate::observer::MemoryObserver;
use crate::pin::Pins;
use crate::range::RamRange;
use crate::region::RamRegion;
use crate::slot::Slot;

/// What a transaction is about. Made by the registry, which has marked these regions as the transaction's own.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) departures: Vec<Departure>,
    pub(super) arrivals: Vec<Arrival>,
    /// Those that are there for the whole transaction, in the order in which they came.
    pub(super) observers: Vec<Arc<dyn MemoryObserver>>,
    /// The machine has to stand still.
    pub(super) standstill: bool,
}

/// A region that leaves its place.
pub(super) struct Departure {
    pub(super) slot: Slot,
    /// The pins of what does not come again, at another address, in another region or with another protection, and where it is.
    pub(super) pins: Vec<(RamRange, Arc<Pins>)>,
    /// It could not be put back.
    pub(super) lost: bool,
}

/// A region that takes a place.
pub(super) struct Arrival {
    pub(super) slot: Slot,
    /// What is to be copied into it.
    pub(super) contents: Option<Arc<RamRegion>>,
    /// It could not be taken back: KVM or an observer still has it.
    pub(super) stuck: bool,
}
