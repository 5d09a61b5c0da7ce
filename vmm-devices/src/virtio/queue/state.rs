//! `QueueState`: what a queue has to know to go on, as a plain structure.

use serde::{Deserialize, Serialize};

/// A queue as its driver has set it up, and how far it has come. Untrusted until a [`Queue`](super::Queue) is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// [`QueueState::VERSION`]; another number is another structure.
    pub version: u16,
    /// Which queue of the device it is.
    pub index: usize,
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table, a multiple of 16.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring, even.
    pub available_ring: u64,
    /// Guest-physical address of the used ring, a multiple of 4.
    pub used_ring: u64,
    /// Index of the next chain to be taken from the available ring.
    pub next_available: u16,
    /// Index of the next element of the used ring.
    pub next_used: u16,
}

impl QueueState {
    /// The version of this structure.
    pub const VERSION: u16 = 1;

    /// Queue `index` of `size` descriptors, whose areas are nowhere yet.
    #[must_use]
    pub fn new(index: usize, size: u16) -> Self {
        Self {
            version: Self::VERSION,
            index,
            size,
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
            next_available: 0,
            next_used: 0,
        }
    }
}
