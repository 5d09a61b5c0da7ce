//! The least reading of an ELF64 file that finds its segments and its PVH entry.

use std::ops::Range;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PVH_ENTRY: u32 = 18;

/// What to load and where to begin.
#[derive(Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Guest-physical address and content of each segment; memory beyond the content is left zero.
    pub segments: Vec<(u64, &'a [u8])>,
    /// The 32-bit entry.
    pub entry: u32,
}

/// Reads `file`; `None` if it is not an ELF64 file with a PVH note or if an offset lies outside.
pub fn parse(file: &[u8]) -> Option<Image<'_>> {
    if file.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let table = usize::try_from(u64_at(file, 32)?).ok()?;
    let (size, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
    let mut segments = Vec::new();
    let mut entry = None;
    for index in 0..usize::from(count) {
        let header = file.get(table.checked_add(index * usize::from(size))?..)?;
        let content = file.get(range(u64_at(header, 8)?, u64_at(header, 32)?)?)?;
        match u32_at(header, 0)? {
            PT_LOAD => segments.push((u64_at(header, 24)?, content)),
            PT_NOTE => entry = entry.or(pvh_entry(content)),
            _ => {}
        }
    }
    Some(Image { segments, entry: entry? })
}

/// The entry in a note segment: notes are name size, descriptor size, type, name, descriptor, each 4-aligned.
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let name_size = usize::try_from(u32_at(notes, 0)?).ok()?;
        let desc_size = usize::try_from(u32_at(notes, 4)?).ok()?;
        let desc = 12usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        if u32_at(notes, 8)? == PVH_ENTRY && notes.get(12..)?.starts_with(b"Xen\0") {
            return u32_at(notes, desc);
        }
        notes = notes.get(desc.checked_add(desc_size.checked_next_multiple_of(4)?)?..)?;
    }
}

fn range(start: u64, length: u64) -> Option<Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(start.checked_add(length)?).ok()?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(in crate::bench) mod tests {
    use super::*;

    const NOTE: [u8; 20] = *b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x00\x00\x20\x00";

    /// An ELF64 file that loads `code` at 2 MiB and enters it there.
    pub fn file(code: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32] = 64;
        file[54] = 56;
        file[56] = 2;
        let content = 64u8 + 2 * 56;
        let note = u8::try_from(NOTE.len()).unwrap();
        for (kind, offset, size) in
            [(1, content + note, u8::try_from(code.len()).unwrap()), (4, content, note)]
        {
            let mut header = [0; 56];
            (header[0], header[8], header[32]) = (kind, offset, size);
            header[24..32].copy_from_slice(&0x20_0000u64.to_le_bytes());
            file.extend_from_slice(&header);
        }
        [file.as_slice(), &NOTE, code].concat()
    }

    #[test]
    fn segments_and_entry_are_found() {
        let image = Image { segments: vec![(0x20_0000, b"code".as_slice())], entry: 0x20_0000 };
        assert_eq!(parse(&file(b"code")), Some(image));
    }

    #[test]
    fn the_entry_is_found_behind_other_notes() {
        let other = b"\x03\0\0\0\x05\0\0\0\x12\0\0\0GNU\0abcdefgh".as_slice();
        assert_eq!(pvh_entry(&[other, &NOTE].concat()), Some(0x20_0000));
        assert_eq!(pvh_entry(other), None);
    }

    #[test]
    fn a_file_cut_short_anywhere_is_no_image() {
        let whole = file(b"code");
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn sizes_that_wrap_are_no_image() {
        let mut wrapping = file(b"code");
        wrapping[64 + 32..64 + 40].fill(0xff);
        assert_eq!(parse(&wrapping), None);
        assert_eq!(pvh_entry(&[0xff; 64]), None);
    }
}
