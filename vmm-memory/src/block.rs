//! `RamBlock`: host memory and who pins it. It can be at one guest address after the other.

use std::sync::Arc;

use crate::backing::HostMemory;
use crate::pin::Pins;

/// Host memory that is or was guest RAM. The mapping lives until its last user is gone: the table, readers of an older
/// table, a memory slot, pins.
#[derive(Debug)]
pub(crate) struct RamBlock {
    pub(crate) memory: HostMemory,
    pub(crate) pins: Arc<Pins>,
}

impl RamBlock {
    pub(crate) fn new(memory: HostMemory) -> Arc<Self> {
        Arc::new(Self { memory, pins: Arc::new(Pins::default()) })
    }

    /// Keeps the mapping until the process ends: somebody may still write to it of whom nobody knows when he will be
    /// done.
    pub(crate) fn leak(self: &Arc<Self>) {
        std::mem::forget(Arc::clone(self));
    }
}
