//! `RamBlock`: host memory and who pins it. It can be at one guest address after the other.

use std::sync::Arc;

use vm_memory::FileOffset;

use crate::backing::HostMemory;
use crate::pin::Pins;

/// Host memory that is or was guest RAM. The mapping lives until its last user is gone: the table, readers of an older
/// table, a memory slot, pins.
#[derive(Debug)]
pub(crate) struct RamBlock {
    pub(crate) memory: HostMemory,
    /// The file by which others can share it, in vm-memory's form.
    pub(crate) shared_file: Option<FileOffset>,
    pub(crate) pins: Arc<Pins>,
}

impl RamBlock {
    pub(crate) fn new(memory: HostMemory) -> Arc<Self> {
        let shared_file = memory.shared_file().map(|(file, offset)| FileOffset::from_arc(file, offset));
        Arc::new(Self { memory, shared_file, pins: Arc::new(Pins::default()) })
    }

    /// Keeps the mapping until the process ends: somebody may still write to it of whom nobody knows when he will be
    /// done.
    pub(crate) fn leak(self: &Arc<Self>) {
        std::mem::forget(Arc::clone(self));
    }
}
