//! Tests of the ELF parser: each check has its failing case.

use elf::abi::{ET_CORE, ET_REL, PT_NULL};

use super::super::E820Entry;
use super::super::kernel::KernelError;
use super::super::place::{Layout, PlaceError};
use super::super::testing::{CODE, DATA, SMALL_MAP, TestElf, linux64_kernel, pvh_kernel};
use super::*;

const CLASSES: [Class; 2] = [Class::ELF32, Class::ELF64];

fn parse_bytes(bytes: &[u8]) -> Result<Kernel, ElfError> {
    parse(&Image::from_bytes("kernel", bytes).unwrap())
}

/// The error of a PVH kernel of `class` after `change`.
fn error(class: Class, change: impl FnOnce(&mut TestElf)) -> ElfError {
    let mut elf = pvh_kernel(class);
    change(&mut elf);
    parse_bytes(&elf.build()).unwrap_err()
}

/// The error of claiming the RAM of `elf`, which can be parsed, in `map`.
fn load_error(elf: &TestElf, map: &[E820Entry]) -> KernelError {
    let file = elf.build();
    let image = Image::from_bytes("kernel", &file).unwrap();
    parse(&image).unwrap().claim(&mut Layout::new(map).unwrap()).unwrap_err()
}

/// The same of a Linux64 kernel after `change`, loaded into the small map.
fn claim_error(change: impl FnOnce(&mut TestElf)) -> KernelError {
    let mut elf = linux64_kernel();
    change(&mut elf);
    load_error(&elf, &SMALL_MAP)
}

#[test]
fn segments_and_entry_of_both_classes_are_read() {
    let data = DATA as u64;
    for class in CLASSES {
        let kernel = parse_bytes(&pvh_kernel(class).build()).unwrap();
        assert_eq!(kernel.entry, EntryPoint::Pvh(0x10_0004));
        let code =
            Segment { occupant: Occupant::Segment(0), file: data..data + 24, memory: 0x10_0000..0x10_0018 };
        let bss = Segment {
            occupant: Occupant::Segment(1),
            file: data + 24..data + 29,
            memory: 0x10_4000..0x10_6000,
        };
        assert_eq!(kernel.segments, [code, bss]);
    }
}

#[test]
fn an_elf64_without_a_note_is_entered_by_its_header() {
    let kernel = parse_bytes(&linux64_kernel().build()).unwrap();
    assert_eq!(kernel.entry, EntryPoint::Linux64 { entry: 0x10_0008, header: SetupHeader::of_vmlinux() });
}

#[test]
fn other_program_headers_are_skipped() {
    let mut elf = pvh_kernel(Class::ELF64).load(0, &CODE, u64::MAX);
    elf.programs[3].p_type = PT_NULL;
    assert_eq!(parse_bytes(&elf.build()).unwrap().segments.len(), 2);
}

#[test]
fn a_segment_without_bytes_in_the_file_may_have_any_offset() {
    let mut elf = linux64_kernel().load(0x11_0000, b"", 0x1000);
    elf.programs[2].p_offset = u64::MAX;
    let kernel = parse_bytes(&elf.build()).unwrap();
    assert_eq!(
        kernel.segments[2],
        Segment { occupant: Occupant::Segment(2), file: 0..0, memory: 0x11_0000..0x11_1000 }
    );
}

#[test]
fn fault_c6_a_truncated_file_is_refused_at_every_length() {
    for class in CLASSES {
        let file = pvh_kernel(class).build();
        let (header, table) = match class {
            Class::ELF32 => (52, 52 + 3 * 32),
            Class::ELF64 => (64, 64 + 3 * 56),
        };
        for length in 1..file.len() {
            let error = parse_bytes(&file[..length]).unwrap_err();
            let expected = if length < header {
                matches!(error, ElfError::Truncated { .. })
            } else if length < table {
                matches!(error, ElfError::TableOutsideFile { .. })
            } else {
                matches!(error, ElfError::SegmentOutsideFile { .. })
            };
            assert!(expected, "{length}: {error:?}");
        }
    }
}

#[test]
fn fault_c6_an_unknown_class_data_or_version_is_refused() {
    for class in CLASSES {
        for at in [4, 5, 6] {
            for value in [0, 3] {
                let mut file = pvh_kernel(class).build();
                file[at] = value;
                assert!(matches!(parse_bytes(&file), Err(ElfError::Ident(_))), "byte {at} = {value}");
            }
        }
        assert!(matches!(error(class, |elf| elf.header.version = 2), ElfError::Version { version: 2 }));
    }
    let mut big_endian = pvh_kernel(Class::ELF64).build();
    big_endian[5] = 2;
    assert!(matches!(parse_bytes(&big_endian), Err(ElfError::Ident(_))));
}

#[test]
fn fault_c6_another_machine_or_type_is_refused() {
    for class in CLASSES {
        let machine = error(class, |elf| elf.header.e_machine = 183);
        assert!(matches!(machine, ElfError::Machine { machine: 183 }), "{machine}");
        let dynamic = error(class, |elf| elf.header.e_type = ET_DYN);
        assert!(matches!(dynamic, ElfError::PositionIndependent), "{dynamic}");
        for kind in [ET_REL, ET_CORE, 0, 0xffff] {
            let error = error(class, |elf| elf.header.e_type = kind);
            assert!(matches!(error, ElfError::Type { kind: found } if found == kind), "{error}");
        }
    }
}

#[test]
fn fault_c6_the_program_header_table_must_lie_in_the_file() {
    for class in CLASSES {
        let length = pvh_kernel(class).build().len() as u64;
        for offset in [length, length - 95, u64::from(u32::MAX)] {
            let error = error(class, |elf| elf.header.e_phoff = offset);
            let expected =
                matches!(error, ElfError::TableOutsideFile { offset: found, .. } if found == offset);
            assert!(expected, "{error}");
        }
    }
    let wrap = error(Class::ELF64, |elf| elf.header.e_phoff = u64::MAX);
    assert!(matches!(wrap, ElfError::TableOutsideFile { offset: u64::MAX, .. }), "{wrap}");
}

#[test]
fn fault_c6_the_count_and_size_of_program_headers_are_bounded() {
    for class in CLASSES {
        for count in [1025, 0xffff] {
            let error = error(class, |elf| elf.header.e_phnum = count);
            assert!(matches!(error, ElfError::EntryCount { count: found } if found == count), "{error}");
        }
        for size in [0, 1, 31, 33, 64, 0xffff] {
            let error = error(class, |elf| elf.header.e_phentsize = size);
            assert!(matches!(error, ElfError::EntrySize { found, .. } if found == size), "{error}");
        }
        let many = error(class, |elf| elf.header.e_phnum = 1024);
        assert!(matches!(many, ElfError::TableOutsideFile { .. }), "{many}");
    }
}

#[test]
fn fault_c6_an_image_that_loads_nothing_is_refused() {
    for class in CLASSES {
        let none = error(class, |elf| elf.header.e_phnum = 0);
        assert!(matches!(none, ElfError::NothingToLoad), "{none}");
        let note_only = error(class, |elf| {
            for program in &mut elf.programs[..2] {
                program.p_type = PT_NULL;
            }
        });
        assert!(matches!(note_only, ElfError::NothingToLoad), "{note_only}");
        let empty = error(class, |elf| {
            for program in &mut elf.programs[..2] {
                (program.p_filesz, program.p_memsz) = (0, 0);
            }
        });
        assert!(matches!(empty, ElfError::NothingToLoad), "{empty}");
    }
}

#[test]
fn fault_c6_a_segment_must_lie_in_the_file() {
    for class in CLASSES {
        for (offset, size) in [(DATA as u64, 0x100), (0xffff_ffff, 1), (0, 0xffff_ffff)] {
            for index in [0, 2] {
                let error = error(class, |elf| {
                    let program = &mut elf.programs[index];
                    (program.p_offset, program.p_filesz, program.p_memsz) = (offset, size, size);
                });
                let expected =
                    matches!(error, ElfError::SegmentOutsideFile { index: found, .. } if found == index);
                assert!(expected, "{error}");
            }
        }
    }
    let wrap = error(Class::ELF64, |elf| elf.programs[1].p_offset = u64::MAX - 2);
    assert!(matches!(wrap, ElfError::SegmentOutsideFile { index: 1, .. }), "{wrap}");
}

#[test]
fn fault_c6_p_filesz_must_not_exceed_p_memsz() {
    for class in CLASSES {
        let error = error(class, |elf| elf.programs[1].p_memsz = 4);
        assert!(matches!(error, ElfError::FileSize { index: 1, file: 5, memory: 4 }), "{error}");
    }
}

#[test]
fn fault_c6_a_segment_must_not_wrap() {
    let error = error(Class::ELF64, |elf| {
        elf.programs[1].p_paddr = 0x10_4000;
        elf.programs[1].p_memsz = u64::MAX;
    });
    assert!(matches!(error, ElfError::Wraps { index: 1, address: 0x10_4000, size: u64::MAX }), "{error}");
}

#[test]
fn fault_c6_a_segment_must_lie_in_one_region_of_ram() {
    for (address, size) in [(0x10_4000, 0xf_c001), (0x20_0000, 8), (0x9_f000, 0x10_0000), (0xf_fff8, 0x10)] {
        let error = claim_error(|elf| {
            (elf.programs[1].p_paddr, elf.programs[1].p_memsz) = (address, size);
        });
        let expected = matches!(
            error,
            KernelError::Place {
                occupant: Occupant::Segment(1),
                range: _,
                source: PlaceError::NotRam { ram_end: 0x20_0000, .. }
            }
        );
        assert!(expected, "{error:?}");
    }
}

#[test]
fn fault_c6_a_memsz_of_2_to_the_62_is_refused() {
    let mut elf = pvh_kernel(Class::ELF64);
    elf.programs[1].p_memsz = 1 << 62;
    let error = load_error(&elf, &SMALL_MAP);
    let expected = matches!(
        error,
        KernelError::Place {
            occupant: Occupant::Segment(1),
            range: _,
            source: PlaceError::NotRam { end: 0x4000_0000_0010_4000, .. }
        }
    );
    assert!(expected, "{error:?}");
}

#[test]
fn fault_c6_segments_must_not_overlap() {
    for address in [0x10_0000, 0x10_0017, 0xf_f000 + 0x1000] {
        let error = claim_error(|elf| elf.programs[1].p_paddr = address);
        let expected = matches!(
            error,
            KernelError::Place {
                occupant: Occupant::Segment(1),
                range: _,
                source: PlaceError::Overlap { other: Occupant::Segment(0), .. }
            }
        );
        assert!(expected, "{error:?}");
    }
}

#[test]
fn fault_c6_a_segment_must_keep_out_of_reserved_ranges() {
    let mut elf = linux64_kernel();
    elf.programs[1].p_paddr = 0x5000;
    let map = [SMALL_MAP[0], SMALL_MAP[2], super::super::testing::reserved(0x6fff, 1)];
    let error = load_error(&elf, &map);
    let expected = matches!(
        error,
        KernelError::Place { source: PlaceError::Overlap { other: Occupant::Reserved, .. }, .. }
    );
    assert!(expected, "{error:?}");
}

#[test]
fn fault_c6_notes_are_bounded() {
    let large = TestElf::new(Class::ELF64).load(0x10_0000, &[0x90; 0x1_0001], 0x1_0001);
    let mut elf = large.pvh(&[0; 4]);
    (elf.programs[1].p_offset, elf.programs[1].p_filesz) = (DATA as u64, 0x1_0001);
    let error = parse_bytes(&elf.build()).unwrap_err();
    assert!(matches!(error, ElfError::NotesTooLarge { index: 1, size: 0x1_0001 }), "{error}");
}

#[test]
fn fault_c6_a_bad_note_is_refused_with_its_program_header() {
    for class in CLASSES {
        let mut file = pvh_kernel(class).build();
        let namesz = DATA + 29;
        file[namesz..namesz + 4].fill(0xff);
        let error = parse_bytes(&file).unwrap_err();
        let expected =
            matches!(error, ElfError::Notes { index: 2, source: NoteError::Outside { size: u32::MAX, .. } });
        assert!(expected, "{error:?}");
    }
}

#[test]
fn fault_c6_the_entry_must_be_in_bytes_of_the_file() {
    for entry in [0, 0xf_ffff, 0x10_0018, 0x10_4005, 0x10_5fff, 0x20_0000, 0xffff_ffff] {
        let pvh = TestElf::new(Class::ELF32)
            .load(0x10_0000, &CODE, 24)
            .load(0x10_4000, b"data!", 0x2000)
            .pvh(&u32::to_le_bytes(entry));
        let error = parse_bytes(&pvh.build()).unwrap_err();
        let expected = matches!(
            error,
            ElfError::EntryOutside { field: "XEN_ELFNOTE_PHYS32_ENTRY", entry: found } if found == u64::from(entry)
        );
        assert!(expected, "{error}");

        let error = parse_bytes(&linux64_kernel().entry(u64::from(entry)).build()).unwrap_err();
        let expected = matches!(error, ElfError::EntryOutside { field: "e_entry", entry: found } if found == u64::from(entry));
        assert!(expected, "{error}");
    }
    for entry in [0x10_0000, 0x10_0017, 0x10_4004] {
        assert!(parse_bytes(&linux64_kernel().entry(entry).build()).is_ok());
    }
}

#[test]
fn fault_c6_a_virtual_entry_is_refused() {
    let error = parse_bytes(&linux64_kernel().entry(0xffff_ffff_8010_0008).build()).unwrap_err();
    assert!(matches!(error, ElfError::EntryOutside { entry: 0xffff_ffff_8010_0008, .. }), "{error}");
}

#[test]
fn a_32_bit_kernel_needs_the_note() {
    let without = |class, machine| {
        let mut elf = TestElf::new(class).load(0x10_0000, &CODE, 24).entry(0x10_0000);
        elf.header.e_machine = machine;
        parse_bytes(&elf.build())
    };
    assert!(matches!(without(Class::ELF32, EM_386), Err(ElfError::NoEntry)));
    assert!(matches!(without(Class::ELF32, EM_X86_64), Err(ElfError::NoEntry)));
    assert!(matches!(without(Class::ELF64, EM_386), Err(ElfError::NoEntry)));
    assert!(without(Class::ELF64, EM_X86_64).is_ok());
}

#[test]
fn a_linux64_segment_above_the_mapped_4_gib_is_refused_and_a_pvh_one_is_not() {
    let high = |elf: TestElf| parse_bytes(&elf.load(0xffff_f000, b"", 0x1001).build());
    let error = high(linux64_kernel()).unwrap_err();
    assert!(
        matches!(error, ElfError::AboveMapped { segment: Occupant::Segment(2), end: 0x1_0000_0001 }),
        "{error}"
    );
    assert!(high(pvh_kernel(Class::ELF64)).is_ok());
}

#[test]
fn a_message_names_the_program_header_its_fields_and_the_file_length() {
    let error = error(Class::ELF64, |elf| {
        (elf.programs[0].p_filesz, elf.programs[0].p_memsz) = (0x1000, 0x1000);
    });
    assert_eq!(
        error.to_string(),
        "program header 0: p_offset 0x200 + p_filesz 0x1000 is past the end of the file (0x235 bytes)"
    );
}
