//! The Multiboot header: found in a kernel image, and checked.
//!
//! Multiboot Specification 0.6.96, section 3.1. A header says that a kernel is to be entered by this protocol; where the
//! kernel goes, the program headers of an ELF file say, or the header itself by its address fields.

mod info;

use super::image::{Image, ReadError};
use super::kernel::{EntryPoint, Kernel, Segment};
use super::place::Occupant;

pub(super) use info::prepare;

/// The header lies in the first 8 KiB of the file, at a multiple of 4.
const SEARCHED: usize = 8192;
const MAGIC: u32 = 0x1bad_b002;
/// Page-aligned modules (bit 0) and a memory map (bit 1): every kernel gets both.
const SERVED: u32 = 0b11;
/// Bits that a loader must serve or refuse.
const REQUIRED: u32 = 0xffff;
/// The address fields are valid.
const HAS_ADDRESSES: u32 = 1 << 16;

/// Why a Multiboot kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum MultibootError {
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[from] ReadError),
    /// The kernel asks for what it would not get.
    #[error(
        "the Multiboot header at {offset:#x} has flags {flags:#x}; of the bits 0 to 15, only 0 (page-aligned modules) \
         and 1 (memory map) can be served"
    )]
    Flags {
        /// Where the header is in the file.
        offset: usize,
        /// `flags`.
        flags: u32,
    },
    /// The address fields are cut.
    #[error(
        "the Multiboot header at {offset:#x} has flags {flags:#x}, but the file ends in its address fields"
    )]
    Truncated {
        /// Where the header is in the file.
        offset: usize,
        /// `flags`.
        flags: u32,
    },
    /// Neither the header nor the format of the file says where the kernel goes.
    #[error(
        "the Multiboot header at {offset:#x} has flags {flags:#x}: without address fields (bit 16), the kernel must be an \
         ELF file"
    )]
    NoAddresses {
        /// Where the header is in the file.
        offset: usize,
        /// `flags`.
        flags: u32,
    },
    /// The load address puts the start of the kernel before the start of the file.
    #[error(
        "load_addr {load:#x} is not within the {offset:#x} bytes before header_addr {header:#x} that the file has before \
         its Multiboot header"
    )]
    LoadAddress {
        /// `load_addr`.
        load: u32,
        /// `header_addr`.
        header: u32,
        /// Where the header is in the file.
        offset: u64,
    },
    /// The addresses are not in order.
    #[error("{field} {end:#x} is below {start_field} {start:#x}")]
    Inverted {
        /// The field at fault.
        field: &'static str,
        /// Its value.
        end: u32,
        /// What it must not be below.
        start_field: &'static str,
        /// Its value.
        start: u64,
    },
    /// The file is shorter than the addresses say.
    #[error(
        "load_addr {load:#x} to load_end_addr {end:#x} is past the end of the file ({length:#x} bytes, load_addr at \
         {offset:#x})"
    )]
    OutsideFile {
        /// `load_addr`.
        load: u32,
        /// `load_end_addr`.
        end: u32,
        /// Where the bytes for `load_addr` are in the file.
        offset: u64,
        /// Length of the file.
        length: u64,
    },
    /// The entry point is not code of this file.
    #[error(
        "entry_addr {entry:#x} is outside the bytes that are loaded from the file ({start:#x}..{end:#x})"
    )]
    EntryOutside {
        /// `entry_addr`.
        entry: u32,
        /// `load_addr`.
        start: u64,
        /// The address after the last byte from the file.
        end: u64,
    },
}

/// A header whose checksum is right and whose flags can be served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    offset: usize,
    flags: u32,
    /// Present if the flags say so.
    addresses: Option<Addresses>,
}

/// The address fields: guest-physical addresses.
#[derive(Debug, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    /// 0: to the end of the file.
    load_end: u32,
    /// 0: there is no BSS.
    bss_end: u32,
    entry: u32,
}

/// The kernel in a file that is not ELF; none if it has no header.
pub(super) fn flat(image: &Image<'_>) -> Result<Option<Kernel>, MultibootError> {
    let Some(header) = find(image)? else { return Ok(None) };
    let Header { offset, flags, .. } = header;
    header.kernel(image.len())?.map(Some).ok_or(MultibootError::NoAddresses { offset, flags })
}

/// Looks for a header; what has the magic but no valid checksum is not one.
pub(super) fn find(image: &Image<'_>) -> Result<Option<Header>, MultibootError> {
    let length = usize::try_from(image.len()).map_or(SEARCHED, |length| length.min(SEARCHED));
    let mut head = vec![0; length];
    image.read_at(0, &mut head)?;
    let words: Vec<u32> = head.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let Some((index, flags)) = words.windows(3).enumerate().find_map(|(index, words)| match *words {
        [MAGIC, flags, checksum] if MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0 => {
            Some((index, flags))
        }
        _ => None,
    }) else {
        return Ok(None);
    };
    let offset = 4 * index;
    if flags & REQUIRED & !SERVED != 0 {
        return Err(MultibootError::Flags { offset, flags });
    }
    let addresses = match words.get(index + 3..index + 8) {
        _ if flags & HAS_ADDRESSES == 0 => None,
        Some(&[header, load, load_end, bss_end, entry]) => {
            Some(Addresses { header, load, load_end, bss_end, entry })
        }
        _ => return Err(MultibootError::Truncated { offset, flags }),
    };
    Ok(Some(Header { offset, flags, addresses }))
}

impl Header {
    /// The kernel that the address fields describe, from a file of `length` bytes; none without them.
    pub(super) fn kernel(&self, length: u64) -> Result<Option<Kernel>, MultibootError> {
        let Some(addresses) = &self.addresses else { return Ok(None) };
        let segment = addresses.segment(self.offset as u64, length)?;
        let start = segment.memory.start;
        let end = start + (segment.file.end - segment.file.start);
        let entry = addresses.entry;
        if !(start..end).contains(&u64::from(entry)) {
            return Err(MultibootError::EntryOutside { entry, start, end });
        }
        Ok(Some(Kernel { segments: vec![segment], entry: EntryPoint::Multiboot(entry) }))
    }
}

impl Addresses {
    /// The one segment of a kernel whose header is at `offset` of a file of `length` bytes.
    fn segment(&self, offset: u64, length: u64) -> Result<Segment, MultibootError> {
        let Self { header, load, load_end: end, bss_end, .. } = *self;
        let start = u64::from(load);
        let file_start = header
            .checked_sub(load)
            .and_then(|before| offset.checked_sub(u64::from(before)))
            .ok_or(MultibootError::LoadAddress { load, header, offset })?;
        let available = length - file_start;
        let inverted =
            |field, end, start_field, start| MultibootError::Inverted { field, end, start_field, start };
        let size = match u64::from(end) {
            0 => available,
            address => address
                .checked_sub(start)
                .ok_or_else(|| inverted("load_end_addr", end, "load_addr", start))?,
        };
        if size > available {
            return Err(MultibootError::OutsideFile { load, end, offset: file_start, length });
        }
        let loaded = start + size;
        let memory_end = match u64::from(bss_end) {
            0 => loaded,
            address if address < loaded => {
                return Err(inverted("bss_end_addr", bss_end, "load_end_addr", loaded));
            }
            address => address,
        };
        let file = file_start..file_start + size;
        Ok(Segment { occupant: Occupant::AddressFields, file, memory: start..memory_end })
    }
}

#[cfg(test)]
mod tests;
