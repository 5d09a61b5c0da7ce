//! The default guest: the image that runs when no kernel is named.

/// An ELF file with a PVH note, built from `guest/` by the build script.
pub(crate) static IMAGE: &[u8] = include_bytes!(env!("VMM_DEFAULT_GUEST"));

#[cfg(test)]
mod tests {
    use elf::ElfBytes;
    use elf::abi::{PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE};
    use elf::endian::LittleEndian;
    use elf::note::Note;
    use elf::segment::ProgramHeader;

    use super::IMAGE;

    /// `XEN_ELFNOTE_PHYS32_ENTRY` in Xen's `include/public/elfnote.h`.
    const PHYS32_ENTRY: u64 = 18;

    fn segments(file: &ElfBytes<'_, LittleEndian>, kind: u32) -> Vec<ProgramHeader> {
        file.segments().unwrap().iter().filter(|header| header.p_type == kind).collect()
    }

    #[test]
    fn the_note_names_an_entry_in_the_code() {
        let file = ElfBytes::<LittleEndian>::minimal_parse(IMAGE).unwrap();
        let [header] = segments(&file, PT_NOTE).try_into().unwrap();
        let [note] = file.segment_data_as_notes(&header).unwrap().collect::<Vec<_>>().try_into().unwrap();
        let Note::Unknown(note) = note else { panic!("{note:?}") };
        assert_eq!((note.n_type, note.name), (PHYS32_ENTRY, b"Xen\0".as_slice()));
        let entry = u64::from(u32::from_le_bytes(note.desc.try_into().unwrap()));
        let code = segments(&file, PT_LOAD).into_iter().find(|header| header.p_flags & PF_X != 0).unwrap();
        assert!((code.p_paddr..code.p_paddr + code.p_filesz).contains(&entry), "{entry:#x} in {code:x?}");
    }

    #[test]
    fn code_cannot_be_written_and_data_cannot_be_executed() {
        let file = ElfBytes::<LittleEndian>::minimal_parse(IMAGE).unwrap();
        let flags: Vec<_> = segments(&file, PT_LOAD).iter().map(|header| header.p_flags).collect();
        assert_eq!(flags, [PF_R | PF_X, PF_R | PF_W]);
    }

    #[test]
    fn the_guest_is_small_in_this_program_and_fits_a_machine_of_2_mib() {
        assert!(IMAGE.len() < 64 << 10, "{} bytes", IMAGE.len());
        let file = ElfBytes::<LittleEndian>::minimal_parse(IMAGE).unwrap();
        for header in segments(&file, PT_LOAD) {
            assert!(header.p_paddr >= 1 << 20 && header.p_paddr + header.p_memsz <= 2 << 20, "{header:x?}");
        }
    }
}
