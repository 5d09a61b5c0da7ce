//! `MemoryReader`: what a device has of guest RAM: the table as it is now, and nothing that changes it.

use std::fmt;
use std::sync::Arc;

use vmm_core::ReadGuard;

use crate::{AddressSpace, GuestMemory};

/// A handle for a device. Clones read the same memory.
#[derive(Clone)]
pub struct MemoryReader(Arc<AddressSpace>);

impl MemoryReader {
    /// A reader of `memory`.
    #[must_use]
    pub fn new(memory: Arc<AddressSpace>) -> Self {
        Self(memory)
    }

    /// The table as it is now. For one exit or one batch of a queue.
    #[must_use]
    #[inline]
    pub fn load(&self) -> ReadGuard<'_, GuestMemory> {
        self.0.memory()
    }
}

impl fmt::Debug for MemoryReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryReader")
    }
}
