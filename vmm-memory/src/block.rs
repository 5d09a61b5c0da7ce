//! `RamBlock`: host memory and who pins it. It can be at one guest address after the other.

use std::sync::Arc;

use vm_memory::FileOffset;

use crate::backing::HostMemory;
use crate::pin::Pins;

/// Host memory that is or was guest RAM: all of a mapping, or a part of one that several share. The mapping lives until its
/// last user is gone: the table, readers of an older table, a memory slot, pins.
#[derive(Debug)]
pub(crate) struct RamBlock {
    memory: Arc<HostMemory>,
    offset: u64,
    size: u64,
    /// The file by which others can share it, in vm-memory's form.
    pub(crate) shared_file: Option<FileOffset>,
    /// The pins of one unit after the other. What can go alone is pinned alone.
    pins: Box<[Arc<Pins>]>,
    unit: u64,
    /// It belongs to a `HotplugRegion`, and only that one changes it.
    pub(crate) is_plugged: bool,
}

impl RamBlock {
    /// All of `memory`, which goes as a whole.
    pub(crate) fn new(memory: impl Into<Arc<HostMemory>>) -> Arc<Self> {
        let memory = memory.into();
        let unit = memory.len();
        let mut block = Self::part(&memory, 0, unit, &[Arc::default()]);
        block.is_plugged = false;
        Arc::new(block)
    }

    /// The part of `memory` from `offset` on that has these pins, each for `unit` bytes. It lies inside.
    pub(crate) fn part(memory: &Arc<HostMemory>, offset: u64, unit: u64, pins: &[Arc<Pins>]) -> Self {
        let size = unit.saturating_mul(pins.len() as u64);
        debug_assert!(offset.checked_add(size).is_some_and(|end| end <= memory.len()));
        let file = memory.shared_file();
        let shared_file = file.map(|(file, first)| FileOffset::from_arc(file, first.saturating_add(offset)));
        Self {
            memory: Arc::clone(memory),
            offset,
            size,
            shared_file,
            pins: pins.into(),
            unit,
            is_plugged: true,
        }
    }

    /// The first byte; it is valid for [`len`](Self::len) bytes.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        self.memory.as_ptr().wrapping_add(offset)
    }

    pub(crate) fn len(&self) -> u64 {
        self.size
    }

    /// The byte of its mapping with which it begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// Whether both are of one mapping.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }

    /// Who pins it, unit by unit.
    pub(crate) fn pins(&self) -> &[Arc<Pins>] {
        &self.pins
    }

    /// Bytes of each unit.
    pub(crate) fn unit(&self) -> u64 {
        self.unit
    }

    /// Keeps the mapping until the process ends: somebody may still write to it of whom nobody knows when he will be
    /// done.
    pub(crate) fn leak(self: &Arc<Self>) {
        std::mem::forget(Arc::clone(self));
    }
}
