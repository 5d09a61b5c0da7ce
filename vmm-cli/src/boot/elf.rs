//! The ELF kernel: its loadable segments and its entry point, every field checked before it is used.

use std::ops::Range;

use elf::abi::{EM_386, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, ELF32_EHDR_TAILSIZE, ELF64_EHDR_TAILSIZE, FileHeader, parse_ident};
use elf::parse::{ParseAt, ParseError};
use elf::segment::{ProgramHeader, SegmentTable};

use super::image::{Image, ReadError};
use super::kernel::{EntryPoint, Kernel, Segment};

use super::linux64::MAPPED;
use super::multiboot::{self, MultibootError};
use super::note::{self, NoteError};
use super::place::Occupant;
use super::setup_header::SetupHeader;

/// Most program headers taken; the table then stays below 64 KiB. `PN_XNUM` (0xffff) is above it on purpose.
const MAX_PROGRAM_HEADERS: u16 = 1024;
/// Most bytes taken from one `PT_NOTE` segment.
const MAX_NOTES: u64 = 0x1_0000;
/// Size of `e_ident`.
const IDENT: usize = 16;

/// Why an ELF file cannot be loaded. Numbers of program headers count from 0.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[from] ReadError),
    /// The file ends inside the ELF header.
    #[error("the file has {length:#x} bytes, too few for an ELF header")]
    Truncated {
        /// Length of the file.
        length: u64,
    },
    /// Not little-endian, no known class, or no known version.
    #[error("e_ident is not that of a little-endian ELF file of class 32 or 64, version 1")]
    Ident(#[source] ParseError),
    /// A header could not be decoded.
    #[error("the ELF headers cannot be decoded")]
    Parse(#[from] ParseError),
    /// The header's version.
    #[error("e_version is {version}; it must be 1")]
    Version {
        /// `e_version`.
        version: u32,
    },
    /// Not for x86.
    #[error("e_machine is {machine}; it must be 3 (EM_386) or 62 (EM_X86_64)")]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// A relocatable image has no addresses of its own, and applying its relocations is the work of a loader that
    /// knows them; a kernel is linked at the physical addresses it runs at.
    #[error("e_type is ET_DYN: link the kernel at a fixed address (-static -no-pie)")]
    PositionIndependent,
    /// Not an executable.
    #[error("e_type is {kind}; it must be 2 (ET_EXEC)")]
    Type {
        /// `e_type`.
        kind: u16,
    },
    /// Entries of the program header table have a size of their own.
    #[error("e_phentsize is {found}; it must be {expected}")]
    EntrySize {
        /// `e_phentsize`.
        found: u16,
        /// What the class prescribes.
        expected: usize,
    },
    /// Too many program headers.
    #[error("e_phnum is {count}; the limit is {MAX_PROGRAM_HEADERS}")]
    EntryCount {
        /// `e_phnum`.
        count: u16,
    },
    /// The program header table lies outside the file.
    #[error(
        "e_phoff {offset:#x} + {size:#x} bytes of program headers is past the end of the file ({length:#x} bytes)"
    )]
    TableOutsideFile {
        /// `e_phoff`.
        offset: u64,
        /// Bytes in the table.
        size: u64,
        /// Length of the file.
        length: u64,
    },
    /// A segment lies outside the file.
    #[error(
        "program header {index}: p_offset {offset:#x} + p_filesz {size:#x} is past the end of the file \
         ({length:#x} bytes)"
    )]
    SegmentOutsideFile {
        /// Number of the program header.
        index: usize,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        size: u64,
        /// Length of the file.
        length: u64,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("program header {index}: p_filesz {file:#x} is greater than p_memsz {memory:#x}")]
    FileSize {
        /// Number of the program header.
        index: usize,
        /// `p_filesz`.
        file: u64,
        /// `p_memsz`.
        memory: u64,
    },
    /// A segment's addresses wrap.
    #[error("program header {index}: p_paddr {address:#x} + p_memsz {size:#x} wraps")]
    Wraps {
        /// Number of the program header.
        index: usize,
        /// `p_paddr`.
        address: u64,
        /// `p_memsz`.
        size: u64,
    },
    /// A note segment is larger than any sensible one.
    #[error("program header {index}: p_filesz {size:#x} of PT_NOTE is above the limit of {MAX_NOTES:#x}")]
    NotesTooLarge {
        /// Number of the program header.
        index: usize,
        /// `p_filesz`.
        size: u64,
    },
    /// A note segment cannot be walked.
    #[error("program header {index}: PT_NOTE")]
    Notes {
        /// Number of the program header.
        index: usize,
        /// The field at fault.
        source: NoteError,
    },
    /// There is nothing to load.
    #[error("no program header is a PT_LOAD with p_memsz above 0")]
    NothingToLoad,
    /// The Multiboot header is at fault.
    #[error(transparent)]
    Multiboot(#[from] MultibootError),
    /// A 32-bit kernel can only be entered by PVH or Multiboot.
    #[error(
        "no PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY) and no Multiboot header with a valid checksum in the first 8 KiB; \
         without them only an ELF64 file for EM_X86_64 can be booted (64-bit Linux boot protocol)"
    )]
    NoEntry,
    /// The entry point is not code of this file.
    #[error(
        "{field} {entry:#x} is outside the bytes that PT_LOAD segments take from the file; it must be the physical \
         address of code"
    )]
    EntryOutside {
        /// Where the entry point was found.
        field: &'static str,
        /// The entry point.
        entry: u64,
    },
    /// The 64-bit Linux boot protocol starts on page tables that map 4 GiB.
    #[error("{segment}: the segment ends at {end:#x}, above the 4 GiB that are mapped at the start")]
    AboveMapped {
        /// Its program header.
        segment: Occupant,
        /// Address after the segment.
        end: u64,
    },
}

/// Reads and checks the headers and notes of `image`.
pub(super) fn parse(image: &Image<'_>) -> Result<Kernel, ElfError> {
    let header = read_header(image)?;
    let table = read_table(image, &header)?;
    let mut segments = Vec::new();
    let mut pvh = None;
    for (index, program) in SegmentTable::new(LittleEndian, header.class, &table).iter().enumerate() {
        match program.p_type {
            PT_LOAD => segments.extend(loadable(image, index, &program)?),
            PT_NOTE if pvh.is_none() => pvh = pvh_entry(image, index, &program)?,
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(ElfError::NothingToLoad);
    }
    let multiboot = if pvh.is_none() { multiboot::find(image)? } else { None };
    if let Some(header) = &multiboot
        && let Some(kernel) = header.kernel(image.len())?
    {
        return Ok(kernel);
    }
    let e_entry = header.e_entry;
    let entry = match pvh {
        Some(entry) => EntryPoint::Pvh(entry),
        None if multiboot.is_some() => EntryPoint::Multiboot(
            u32::try_from(e_entry)
                .map_err(|_| ElfError::EntryOutside { field: "e_entry", entry: e_entry })?,
        ),
        None if header.class == Class::ELF64 && header.e_machine == EM_X86_64 => {
            EntryPoint::Linux64 { entry: e_entry, header: SetupHeader::of_vmlinux() }
        }
        None => return Err(ElfError::NoEntry),
    };
    check_entry(&segments, entry)?;
    Ok(Kernel { segments, entry })
}

fn check_entry(segments: &[Segment], entry: EntryPoint) -> Result<(), ElfError> {
    match entry {
        EntryPoint::Pvh(entry) => check_code(segments, "XEN_ELFNOTE_PHYS32_ENTRY", u64::from(entry)),
        EntryPoint::Multiboot(entry) => check_code(segments, "e_entry", u64::from(entry)),
        EntryPoint::Linux64 { entry, .. } => {
            if let Some(Segment { occupant, memory, .. }) = segments.iter().find(|it| it.memory.end > MAPPED)
            {
                return Err(ElfError::AboveMapped { segment: *occupant, end: memory.end });
            }
            check_code(segments, "e_entry", entry)
        }
    }
}

/// `entry` must be a byte from the file: in the BSS there is no code yet.
fn check_code(segments: &[Segment], field: &'static str, entry: u64) -> Result<(), ElfError> {
    let holds_entry = |Segment { file, memory, .. }: &Segment| {
        entry.checked_sub(memory.start).is_some_and(|offset| offset < file.end - file.start)
    };
    if segments.iter().any(holds_entry) { Ok(()) } else { Err(ElfError::EntryOutside { field, entry }) }
}

fn read_header(image: &Image<'_>) -> Result<FileHeader<LittleEndian>, ElfError> {
    let truncated = || ElfError::Truncated { length: image.len() };
    let mut buffer = [0; IDENT + ELF64_EHDR_TAILSIZE];
    let length = usize::try_from(image.len()).map_or(buffer.len(), |length| length.min(buffer.len()));
    image.read_at(0, &mut buffer[..length])?;
    let (ident, tail) = buffer[..length].split_at_checked(IDENT).ok_or_else(truncated)?;
    let ident = parse_ident(ident).map_err(ElfError::Ident)?;
    let tail_size = match ident.1 {
        Class::ELF32 => ELF32_EHDR_TAILSIZE,
        Class::ELF64 => ELF64_EHDR_TAILSIZE,
    };
    let header = FileHeader::parse_tail(ident, tail.get(..tail_size).ok_or_else(truncated)?)?;
    match header {
        FileHeader { version, .. } if version != u32::from(EV_CURRENT) => Err(ElfError::Version { version }),
        FileHeader { e_machine: machine, .. } if !matches!(machine, EM_386 | EM_X86_64) => {
            Err(ElfError::Machine { machine })
        }
        FileHeader { e_type: ET_DYN, .. } => Err(ElfError::PositionIndependent),
        FileHeader { e_type: kind, .. } if kind != ET_EXEC => Err(ElfError::Type { kind }),
        _ => Ok(header),
    }
}

fn read_table(image: &Image<'_>, header: &FileHeader<LittleEndian>) -> Result<Vec<u8>, ElfError> {
    let FileHeader { e_phoff: offset, e_phentsize: found, e_phnum: count, .. } = *header;
    if count == 0 {
        return Err(ElfError::NothingToLoad);
    }
    if count > MAX_PROGRAM_HEADERS {
        return Err(ElfError::EntryCount { count });
    }
    let expected = ProgramHeader::size_for(header.class);
    if usize::from(found) != expected {
        return Err(ElfError::EntrySize { found, expected });
    }
    let mut table = vec![0; usize::from(count) * expected];
    let size = table.len() as u64;
    if !in_file(image, offset, size) {
        return Err(ElfError::TableOutsideFile { offset, size, length: image.len() });
    }
    image.read_at(offset, &mut table)?;
    Ok(table)
}

/// The segment of a `PT_LOAD`; none if it takes no memory.
fn loadable(image: &Image<'_>, index: usize, program: &ProgramHeader) -> Result<Option<Segment>, ElfError> {
    let ProgramHeader { p_paddr: address, p_memsz: memory, p_filesz: file, .. } = *program;
    if file > memory {
        return Err(ElfError::FileSize { index, file, memory });
    }
    let file = file_range(image, index, program)?;
    let end = address.checked_add(memory).ok_or(ElfError::Wraps { index, address, size: memory })?;
    Ok((memory > 0).then_some(Segment { occupant: Occupant::Segment(index), file, memory: address..end }))
}

/// The PVH entry in the notes of a `PT_NOTE`.
fn pvh_entry(image: &Image<'_>, index: usize, program: &ProgramHeader) -> Result<Option<u32>, ElfError> {
    let size = program.p_filesz;
    let range = file_range(image, index, program)?;
    let length = usize::try_from(size)
        .ok()
        .filter(|_| size <= MAX_NOTES)
        .ok_or(ElfError::NotesTooLarge { index, size })?;
    let mut notes = vec![0; length];
    image.read_at(range.start, &mut notes)?;
    note::pvh_entry(&notes, program.p_align).map_err(|source| ElfError::Notes { index, source })
}

/// The bytes of a segment in the file. Where there are none, linkers leave any `p_offset`: it is not looked at.
fn file_range(image: &Image<'_>, index: usize, program: &ProgramHeader) -> Result<Range<u64>, ElfError> {
    let ProgramHeader { p_offset: offset, p_filesz: size, .. } = *program;
    if size == 0 {
        return Ok(0..0);
    }
    if !in_file(image, offset, size) {
        return Err(ElfError::SegmentOutsideFile { index, offset, size, length: image.len() });
    }
    Ok(offset..offset + size)
}

fn in_file(image: &Image<'_>, offset: u64, size: u64) -> bool {
    offset.checked_add(size).is_some_and(|end| end <= image.len())
}

#[cfg(test)]
mod tests;
