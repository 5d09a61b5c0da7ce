//! The PVH note: the 32-bit entry point among the notes of a kernel.
//!
//! Walked here and not by the `elf` crate, whose iterator ends at a malformed note as it does after the last one.

use elf::endian::{EndianParse, LittleEndian};

/// Name of Xen's notes, with its NUL.
const XEN: &[u8] = b"Xen\0";
/// Type of the note that holds the entry point (Xen `include/public/elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Why a note segment cannot be walked. Offsets count from the start of the segment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The segment ends inside the three words that a note starts with.
    #[error("the note at {at:#x} has no room for its header in the segment ({length:#x} bytes)")]
    Truncated {
        /// Where the note starts.
        at: usize,
        /// Length of the segment.
        length: usize,
    },
    /// A note's name or descriptor reaches past the segment.
    #[error("the note at {at:#x}: {field} {size:#x} is past the end of the segment ({length:#x} bytes)")]
    Outside {
        /// Where the note starts.
        at: usize,
        /// `n_namesz` or `n_descsz`.
        field: &'static str,
        /// Its value.
        size: u32,
        /// Length of the segment.
        length: usize,
    },
    /// The entry point has an odd size.
    #[error("the note at {at:#x}: n_descsz of XEN_ELFNOTE_PHYS32_ENTRY is {size}; it must be 4 or 8")]
    EntrySize {
        /// Where the note starts.
        at: usize,
        /// `n_descsz`.
        size: usize,
    },
    /// 32-bit code cannot start there.
    #[error("the note at {at:#x}: XEN_ELFNOTE_PHYS32_ENTRY {entry:#x} is not below 4 GiB")]
    EntryTooHigh {
        /// Where the note starts.
        at: usize,
        /// The descriptor.
        entry: u64,
    },
}

/// Finds the PVH entry point in the bytes of a `PT_NOTE` segment with the alignment `p_align`.
///
/// Notes are aligned to 4 bytes; in segments aligned to 8 they may be aligned to 8, but a linker script that puts
/// both kinds into one segment leaves 4-byte notes there too, so both are tried.
pub(super) fn pvh_entry(notes: &[u8], p_align: u64) -> Result<Option<u32>, NoteError> {
    match walk(notes, 4) {
        Ok(Some(entry)) => Ok(Some(entry)),
        _ if p_align == 8 => walk(notes, 8),
        other => other,
    }
}

fn walk(notes: &[u8], align: usize) -> Result<Option<u32>, NoteError> {
    let length = notes.len();
    let mut next = 0;
    while next < length {
        let at = next;
        let mut word =
            || LittleEndian.parse_u32_at(&mut next, notes).map_err(|_| NoteError::Truncated { at, length });
        let (name_size, descriptor_size, kind) = (word()?, word()?, word()?);
        let mut part = |field, size: u32| {
            let bytes = take(notes, &mut next, size, align);
            bytes.ok_or(NoteError::Outside { at, field, size, length })
        };
        let name = part("n_namesz", name_size)?;
        let descriptor = part("n_descsz", descriptor_size)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == XEN {
            return entry_point(at, descriptor).map(Some);
        }
    }
    Ok(None)
}

/// The `size` bytes at `next`, which moves behind them and their padding; the last note may lack its padding.
fn take<'a>(notes: &'a [u8], next: &mut usize, size: u32, align: usize) -> Option<&'a [u8]> {
    let end = next.checked_add(usize::try_from(size).ok()?)?;
    let bytes = notes.get(*next..end)?;
    *next = end.next_multiple_of(align).min(notes.len());
    Some(bytes)
}

fn entry_point(at: usize, descriptor: &[u8]) -> Result<u32, NoteError> {
    if let Ok(bytes) = descriptor.try_into() {
        return Ok(u32::from_le_bytes(bytes));
    }
    let bytes = descriptor.try_into().map_err(|_| NoteError::EntrySize { at, size: descriptor.len() })?;
    let entry = u64::from_le_bytes(bytes);
    u32::try_from(entry).map_err(|_| NoteError::EntryTooHigh { at, entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One note, its parts padded to `align`.
    fn note(name: &[u8], kind: u32, descriptor: &[u8], align: usize) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len().try_into().unwrap(), descriptor.len().try_into().unwrap(), kind] {
            note.extend(word.to_le_bytes());
        }
        for part in [name, descriptor] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(align), 0);
        }
        note
    }

    fn xen(descriptor: &[u8]) -> Vec<u8> {
        note(XEN, XEN_ELFNOTE_PHYS32_ENTRY, descriptor, 4)
    }

    #[test]
    fn an_entry_of_4_or_8_bytes_is_found() {
        assert_eq!(pvh_entry(&xen(&0x10_0000_u32.to_le_bytes()), 4), Ok(Some(0x10_0000)));
        assert_eq!(pvh_entry(&xen(&0xffff_fff0_u64.to_le_bytes()), 4), Ok(Some(0xffff_fff0)));
    }

    #[test]
    fn an_entry_behind_other_notes_is_found() {
        let notes = [
            note(b"GNU\0", 1, &[1; 6], 4),
            note(b"Xen\0", 17, b"", 4),
            note(b"Xen\0\0", XEN_ELFNOTE_PHYS32_ENTRY, &[2; 4], 4),
            note(b"", XEN_ELFNOTE_PHYS32_ENTRY, &[3; 4], 4),
            xen(&0x1234_u32.to_le_bytes()),
        ];
        assert_eq!(pvh_entry(&notes.concat(), 4), Ok(Some(0x1234)));
        assert_eq!(pvh_entry(&notes[..4].concat(), 4), Ok(None));
    }

    #[test]
    fn both_alignments_are_found_in_a_segment_aligned_to_8() {
        let entry = xen(&0x1234_u32.to_le_bytes());
        for align in [4, 8] {
            let notes = [note(b"GNU\0", 3, &[1; 20], align), entry.clone()].concat();
            assert_eq!(pvh_entry(&notes, 8), Ok(Some(0x1234)), "alignment {align}");
        }
        let wide = [note(b"GNU\0", 3, &[1; 20], 8), entry].concat();
        assert_ne!(pvh_entry(&wide, 4), Ok(Some(0x1234)));
    }

    #[test]
    fn the_last_note_may_lack_its_padding() {
        let notes = note(b"GNU\0", 1, &[1; 6], 1);
        assert_eq!(notes.len(), 22);
        assert_eq!(pvh_entry(&notes, 4), Ok(None));
        assert_eq!(pvh_entry(&note(b"a", 1, b"", 1), 4), Ok(None));
    }

    #[test]
    fn fault_c6_a_note_size_of_0xffffffff_is_refused() {
        for (offset, field) in [(0, "n_namesz"), (4, "n_descsz")] {
            for p_align in [4, 8] {
                let mut notes = xen(&[0; 4]);
                notes[offset..offset + 4].fill(0xff);
                let expected = NoteError::Outside { at: 0, field, size: u32::MAX, length: 20 };
                assert_eq!(pvh_entry(&notes, p_align), Err(expected));
            }
        }
    }

    #[test]
    fn fault_c6_a_truncated_note_is_refused() {
        let notes = xen(&[0; 4]);
        for length in 1..12 {
            assert_eq!(pvh_entry(&notes[..length], 4), Err(NoteError::Truncated { at: 0, length }));
        }
        for length in 12..20 {
            let error = pvh_entry(&notes[..length], 4).unwrap_err();
            assert!(matches!(error, NoteError::Outside { at: 0, .. }), "{length}: {error}");
        }
    }

    #[test]
    fn fault_c6_an_entry_of_another_size_or_above_4_gib_is_refused() {
        for size in [0, 3, 5, 16] {
            assert_eq!(pvh_entry(&xen(&vec![0; size]), 4), Err(NoteError::EntrySize { at: 0, size }));
        }
        let entry = 1_u64 << 32;
        assert_eq!(pvh_entry(&xen(&entry.to_le_bytes()), 4), Err(NoteError::EntryTooHigh { at: 0, entry }));
    }
}
