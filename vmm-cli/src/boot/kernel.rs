//! The kernel: the segments that are copied to guest memory, and how it is entered.

use std::ops::Range;

use super::bzimage::BzImageError;
use super::elf::ElfError;
use super::multiboot::MultibootError;
use super::place::{Layout, Occupant, PlaceError};
use super::setup_header::SetupHeader;

/// Why a kernel of a known format cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The ELF file is at fault.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The bzImage is at fault.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The Multiboot header is at fault.
    #[error(transparent)]
    Multiboot(#[from] MultibootError),
    /// A segment has no place in RAM.
    #[error("{}", fields(*occupant, range))]
    Place {
        /// The segment.
        occupant: Occupant,
        /// Its guest-physical addresses.
        range: Range<u64>,
        /// Why it has none.
        source: PlaceError,
    },
}

/// The fields of the file that say where a segment goes.
fn fields(occupant: Occupant, range: &Range<u64>) -> String {
    let (start, size) = (range.start, range.end - range.start);
    match occupant {
        Occupant::Segment(_) => format!("{occupant}: p_paddr {start:#x}, p_memsz {size:#x}"),
        _ => format!("{occupant}: {size:#x} bytes at {start:#x}"),
    }
}

/// Where and how the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryPoint {
    Pvh(u32),
    Multiboot(u32),
    Linux64 { entry: u64, header: SetupHeader },
}

/// One piece of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// What it is called in messages.
    pub occupant: Occupant,
    /// Its bytes in the file, perhaps none.
    pub file: Range<u64>,
    /// Its guest-physical addresses, at least as many as bytes in the file and at least one.
    pub memory: Range<u64>,
}

/// A kernel whose fields agree with each other and with the file.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Not empty.
    pub segments: Vec<Segment>,
    pub entry: EntryPoint,
}

impl Kernel {
    /// Takes the RAM of every segment.
    pub(super) fn claim(self, layout: &mut Layout) -> Result<Self, KernelError> {
        for Segment { occupant, memory, .. } in &self.segments {
            layout.claim(memory.clone(), *occupant).map_err(|source| KernelError::Place {
                occupant: *occupant,
                range: memory.clone(),
                source,
            })?;
        }
        Ok(self)
    }
}
