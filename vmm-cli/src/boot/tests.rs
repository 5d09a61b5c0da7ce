//! Tests of whole loads: what the guest finds in its memory, and what is refused before it is written.

#![expect(clippy::cast_possible_truncation, reason = "addresses and lengths are small here")]

use std::io::Write;

use ::elf::file::Class;
use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::tempfile::TempFile;

use super::kernel::Segment;
use super::testing::{
    CODE, DATA_BYTES, Guest, SMALL_MAP, TestBzImage, TestElf, field, linux64_kernel, multiboot_kernel,
    platform, pvh_kernel, ram, reserved,
};
use super::*;

fn source<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>, cmdline: &'a str) -> BootSource<'a> {
    BootSource {
        kernel: Image::from_bytes("kernel", kernel).unwrap(),
        initrd: initrd.map(|bytes| Image::from_bytes("initrd", bytes).unwrap()),
        cmdline,
    }
}

/// Loads into fresh memory; both the entry that `load` gives and the plan of `inspect` must agree.
fn loaded(map: &[E820Entry], source: &BootSource<'_>) -> (Guest, Inspection) {
    let guest = Guest::new(map);
    let inspection = inspect(&platform(map), source).unwrap();
    assert_eq!(load(&guest.memory, &platform(map), source).unwrap(), inspection.entry);
    assert!(guest.only_ram_was_written());
    (guest, inspection)
}

fn error(map: &[E820Entry], source: &BootSource<'_>) -> BootError {
    let guest = Guest::new(map);
    let error = load(&guest.memory, &platform(map), source).unwrap_err();
    assert_eq!(inspect(&platform(map), source).unwrap_err().to_string(), error.to_string());
    let end = usize::try_from(map.iter().map(|entry| entry.start + entry.size).max().unwrap()).unwrap();
    let written = guest.bytes(0, end).iter().any(|byte| !matches!(byte, 0 | 0xa5));
    assert!(!written, "a refused load wrote guest memory");
    error
}

/// The message and all its sources, as the command prints them.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn assert_sample_is_loaded(guest: &Guest) {
    assert_eq!(guest.bytes(0x10_0000, CODE.len()), CODE);
    assert_eq!(guest.bytes(0x10_4000, DATA_BYTES.len()), DATA_BYTES);
}

#[test]
fn fault_c6_the_bss_reads_as_zero() {
    for kernel in [pvh_kernel(Class::ELF32), pvh_kernel(Class::ELF64), linux64_kernel()] {
        let (guest, _) = loaded(&SMALL_MAP, &source(&kernel.build(), Some(&[0xee; 0x800]), "x"));
        assert_sample_is_loaded(&guest);
        let bss = guest.bytes(0x10_4000 + DATA_BYTES.len() as u64, 0x2000 - DATA_BYTES.len());
        assert!(bss.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_bss_in_conventional_memory_is_stepped_over_by_structures_and_initrd() {
    for kernel in [pvh_kernel(Class::ELF32), linux64_kernel()] {
        let kernel = kernel.load(0x1000, b"", 0x7_0000).load(0x9_0000, b"", 0xf000);
        let map = [ram(0, 0x9_fc00), ram(0x10_0000, 0x6000)];
        // The gap between code and data at 1 MiB is one page too small for the initrd.
        let (guest, inspection) = loaded(&map, &source(&kernel.build(), Some(&[0xee; 0x4000]), "abc"));
        assert!(guest.bytes(0x1000, 0x7_0000).iter().all(|byte| *byte == 0));
        assert!(guest.bytes(0x9_0000, 0xf000).iter().all(|byte| *byte == 0));
        assert_eq!(inspection.initrd, Some(0x8_c000..0x9_0000));
    }
}

#[test]
fn pvh_hands_over_start_info_memory_map_module_and_command_line() {
    for class in [Class::ELF32, Class::ELF64] {
        let initrd = [0xee; 0x1234];
        let kernel = pvh_kernel(class).build();
        let (guest, inspection) = loaded(&SMALL_MAP, &source(&kernel, Some(&initrd), "console=ttyS0"));
        let BootRegs::Pvh { entry, start_info } = inspection.entry else { panic!("{:?}", inspection.entry) };
        assert_eq!((entry, start_info), (0x10_0004, 0x6000));
        assert_eq!(inspection.taken[1..3], [0x10_0000..0x10_0018, 0x10_4000..0x10_6000]);

        // Offsets from Xen's start_info.h.
        let info = u64::from(start_info);
        assert_eq!(guest.bytes(info, 16), [0x336e_c578_u32, 1, 0, 1].map(u32::to_le_bytes).concat());
        let (modules, cmdline, rsdp, map) =
            (guest.u64(info + 16), guest.u64(info + 24), guest.u64(info + 32), guest.u64(info + 40));
        assert_eq!((rsdp, guest.u32(info + 48), guest.u32(info + 52)), (0, 3, 0));
        assert_eq!(guest.bytes(cmdline, 14), b"console=ttyS0\0");

        for (index, (start, size, kind)) in
            [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0x10_0000, 0x10_0000, 1)].into_iter().enumerate()
        {
            let at = map + 24 * index as u64;
            assert_eq!((guest.u64(at), guest.u64(at + 8), guest.u64(at + 16)), (start, size, kind));
        }

        let start = 0x20_0000 - 0x2000;
        assert_eq!(inspection.initrd, Some(start..start + 0x1234));
        assert_eq!((guest.u64(modules), guest.u64(modules + 8)), (start, 0x1234));
        assert_eq!((guest.u64(modules + 16), guest.u64(modules + 24)), (0, 0));
        assert_eq!(guest.bytes(start, 0x1234), initrd);
        assert_sample_is_loaded(&guest);
    }
}

#[test]
fn pvh_without_an_initrd_has_no_modules() {
    let (guest, inspection) = loaded(&SMALL_MAP, &source(&pvh_kernel(Class::ELF32).build(), None, ""));
    assert_eq!(inspection.initrd, None);
    assert_eq!((guest.u32(0x600c), guest.u64(0x6010)), (0, 0));
    assert_eq!(guest.bytes(guest.u64(0x6018), 1), b"\0");
}

#[test]
fn linux64_hands_over_boot_params() {
    let initrd = [0xee; 0x1234];
    let kernel = linux64_kernel().build();
    let (guest, inspection) = loaded(&SMALL_MAP, &source(&kernel, Some(&initrd), "root=/dev/vda"));
    let BootRegs::Linux64 { entry, boot_params, .. } = inspection.entry else {
        panic!("{:?}", inspection.entry)
    };
    assert_eq!((entry, boot_params), (0x10_0008, 0x6000));

    // Offsets from zero-page.rst and boot.rst.
    let at = |offset| boot_params + offset;
    assert_eq!(guest.bytes(at(0x1fe), 2), [0x55, 0xaa]);
    assert_eq!(guest.bytes(at(0x202), 6), *b"HdrS\x0e\x02");
    assert_eq!(guest.bytes(at(0x210), 1), [0xff]);
    assert_eq!(guest.bytes(u64::from(guest.u32(at(0x228))), 14), b"root=/dev/vda\0");
    let start = 0x20_0000 - 0x2000;
    assert_eq!((guest.u32(at(0x218)), guest.u32(at(0x21c))), (start, 0x1234));
    assert_eq!((guest.u32(at(0xc0)), guest.u32(at(0xc4)), guest.u32(at(0xc8))), (0, 0, 0));
    assert_eq!(guest.bytes(u64::from(start), 0x1234), initrd);
    assert_eq!(guest.bytes(at(0x1e8), 1), [3]);
    for (index, (first, size, kind)) in
        [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0x10_0000, 0x10_0000, 1)].into_iter().enumerate()
    {
        let at = at(0x2d0 + 20 * index as u64);
        assert_eq!((guest.u64(at), guest.u64(at + 8), guest.u32(at + 16)), (first, size, kind));
    }
    assert!(guest.bytes(at(0x2d0 + 60), 0x1000 - 0x2d0 - 60).iter().all(|byte| *byte == 0));
    assert_sample_is_loaded(&guest);
}

#[test]
fn a_bzimage_gets_its_own_header_back_in_boot_params() {
    let initrd = [0xee; 0x1234];
    let image = TestBzImage::new();
    let (guest, inspection) = loaded(&SMALL_MAP, &source(&image.0, Some(&initrd), "root=/dev/vda"));
    let BootRegs::Linux64 { entry, boot_params, .. } = inspection.entry else {
        panic!("{:?}", inspection.entry)
    };
    assert_eq!((entry, boot_params), (0x10_0200, 0x6000));
    assert_eq!(guest.bytes(entry, CODE.len()), CODE);
    assert_eq!(guest.bytes(0x10_0000, TestBzImage::CODE_SIZE), image.0[TestBzImage::CODE..]);

    let start = 0x20_0000 - 0x2000;
    assert_eq!(inspection.initrd, Some(start..start + 0x1234));
    assert_eq!(guest.bytes(start, 0x1234), initrd);
    let cmdline = guest.u32(boot_params + 0x228);
    assert_eq!(guest.bytes(u64::from(cmdline), 14), b"root=/dev/vda\0");
    let expected = image
        .with(0x210, [0xff])
        .with(0x218, (start as u32).to_le_bytes())
        .with(0x21c, 0x1234_u32.to_le_bytes())
        .with(0x228, cmdline.to_le_bytes());
    assert_eq!(guest.bytes(boot_params + 0x1f1, 0x26c - 0x1f1), expected.0[0x1f1..0x26c]);
    assert!(guest.bytes(boot_params, 0x1e8).iter().all(|byte| *byte == 0));
    assert_eq!(guest.bytes(boot_params + 0x1e8, 9), [3, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(guest.bytes(boot_params + 0x26c, 0x2d0 - 0x26c).iter().all(|byte| *byte == 0));
}

#[test]
fn fault_c7_init_size_is_kept_free_of_initrd_and_structures() {
    let image = TestBzImage::new()
        .with(field::PREF_ADDRESS, 0x6000_u64.to_le_bytes())
        .with(field::KERNEL_ALIGNMENT, 0x1000_u32.to_le_bytes())
        .with(field::INIT_SIZE, 0x8_0000_u32.to_le_bytes());
    let map = [ram(0, 0x9_f000)];
    let (guest, inspection) = loaded(&map, &source(&image.0, Some(&[0xee; 0x1000]), "abc"));
    assert_eq!(inspection.taken[0], 0x6000..0x8_6000);
    assert!(guest.bytes(0x6400, 0x8_0000 - 0x400).iter().all(|byte| *byte == 0));
    let error = error(&map, &source(&image.0, Some(&vec![0xee; 0x1_9000]), "abc"));
    assert!(matches!(error, BootError::Initrd { .. }), "{error}");
}

#[test]
fn fault_c8_the_initrd_of_a_bzimage_keeps_to_the_limit_of_its_header() {
    let map = [ram(0, 0xa_0000), ram(0x10_0000, 0xf_0000), ram(1 << 32, 1 << 20)];
    let placed = |image: TestBzImage, size| {
        inspect(&platform(&map), &source(&image.0, Some(&vec![1; size]), "")).map(|plan| plan.initrd.unwrap())
    };
    let low = TestBzImage::new().with(field::INITRD_ADDR_MAX, 0x17_ffff_u32.to_le_bytes());
    let only_64 = |image: TestBzImage| image.with(field::XLOADFLAGS, [1, 0]);
    assert_eq!(placed(low.clone(), 0x1001).unwrap(), 0x17_e000..0x17_f001);
    assert_eq!(placed(TestBzImage::new(), 0x1001).unwrap(), 0x1e_e000..0x1e_f001);
    assert_eq!(placed(low.clone(), 0x9_0000).unwrap(), 0x1_0000..0xa_0000);
    assert_eq!(placed(low.clone(), 0xa_0000).unwrap(), 0x1_0006_0000..0x1_0010_0000);
    let text = chain(&placed(only_64(low), 0xa_0000).unwrap_err());
    assert_eq!(text, "initrd initrd: no free RAM below 0x180000 for the 0xa0000 bytes of the initrd");
}

#[test]
fn an_initrd_above_4_gib_is_told_in_both_halves() {
    let map = [ram(0, 0xa_0000), ram(0x10_0000, 0x10_0000), ram(1 << 32, 1 << 20)];
    let image = TestBzImage::new().with(field::INITRD_ADDR_MAX, [0; 4]);
    let source = source(&image.0, Some(&[0xee; 0x1001]), "");
    let plan = Plan::new(&platform(&map), &source).unwrap();
    assert_eq!(plan.prepared.initrd, Some(0x1_000f_e000..0x1_000f_f001));
    let page = &plan.prepared.blobs[0].bytes;
    let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    assert_eq!((word(0x218), word(0xc0)), (0x000f_e000, 1));
    assert_eq!((word(0x21c), word(0xc4)), (0x1001, 0));
}

#[test]
fn fault_c8_a_command_line_longer_than_this_kernel_takes_is_refused() {
    let image = TestBzImage::new().with(field::CMDLINE_SIZE, 255_u32.to_le_bytes());
    loaded(&SMALL_MAP, &source(&image.0, None, &"a".repeat(255)));
    let error = error(&SMALL_MAP, &source(&image.0, None, &"a".repeat(256)));
    assert_eq!(
        chain(&error),
        "the kernel command line: is 256 bytes long; the limit of this kernel is 255 (cmdline_size)"
    );
}

#[test]
fn the_acpi_root_pointer_is_told_where_the_protocol_has_a_field_for_it() {
    let rsdp = 0xe_0040;
    let platform = Platform { map: &SMALL_MAP, rsdp: Some(rsdp) };
    for (kernel, offset) in [
        (pvh_kernel(Class::ELF32).build(), 32),
        (linux64_kernel().build(), 0x70),
        (TestBzImage::new().0, 0x70),
    ] {
        let guest = Guest::new(&SMALL_MAP);
        load(&guest.memory, &platform, &source(&kernel, None, "")).unwrap();
        assert_eq!(guest.u64(0x6000 + offset), rsdp);
    }
}

#[test]
fn linux64_maps_4_gib_onto_themselves() {
    let (guest, inspection) = loaded(&SMALL_MAP, &source(&linux64_kernel().build(), None, ""));
    let BootRegs::Linux64 { page_table, .. } = inspection.entry else { panic!("{:?}", inspection.entry) };
    assert_eq!(page_table % 0x1000, 0);
    let present = |entry: u64| (entry & 3 == 3).then_some(entry & !0xfff);
    // A walk as the processor makes it, to a page of 2 MiB.
    let translate = |address: u64| {
        let index = |shift: u32| 8 * ((address >> shift) & 0x1ff);
        let pointers = present(guest.u64(page_table + index(39)))?;
        let directory = present(guest.u64(pointers + index(30)))?;
        let page = guest.u64(directory + index(21));
        assert_eq!(page & 0x80, 0x80, "a large page");
        Some(present(page)? + (address & 0x1f_ffff))
    };
    for address in (0..1 << 32).step_by(0x1f_f001).chain([0xffff_ffff]) {
        assert_eq!(translate(address), Some(address));
    }
    for address in [1 << 32, 1 << 39, u64::MAX >> 17] {
        assert_eq!(translate(address), None, "{address:#x}");
    }
}

#[test]
fn linux64_brings_the_segments_that_the_protocol_names() {
    let (guest, inspection) = loaded(&SMALL_MAP, &source(&linux64_kernel().build(), None, ""));
    let BootRegs::Linux64 { gdt, gdt_limit, .. } = inspection.entry else { panic!("{:?}", inspection.entry) };
    assert_eq!(gdt_limit, 31);
    let descriptor = |selector: u64| {
        let raw = guest.u64(gdt + selector);
        let limit = (raw & 0xffff) | ((raw >> 32) & 0xf_0000);
        (limit, (raw >> 40) & 0xff, (raw >> 52) & 0xf)
    };
    assert_eq!(descriptor(0x10), (0xf_ffff, 0x9b, 0b1010), "present, code, accessed; 4 KiB units, long");
    assert_eq!(descriptor(0x18), (0xf_ffff, 0x93, 0b1100), "present, data, accessed; 4 KiB units, 32-bit");
    assert_eq!(guest.u64(gdt), 0);
}

#[test]
fn a_guest_of_1_mib_boots_by_both_protocols() {
    let map = [ram(0, 0xa_0000)];
    let kernel = |class| TestElf::new(class).load(0x2_0000, &CODE, 0x4000);
    let pvh = kernel(Class::ELF32).pvh(&0x2_0000_u32.to_le_bytes());
    for kernel in [pvh, kernel(Class::ELF64).entry(0x2_0000)] {
        let (guest, inspection) = loaded(&map, &source(&kernel.build(), Some(&[0xee; 0x7_0000]), "quiet"));
        assert_eq!(inspection.initrd, Some(0x3_0000..0xa_0000));
        assert_eq!(guest.bytes(0x2_0000, CODE.len()), CODE);
    }
}

#[test]
fn the_initrd_of_pvh_is_below_4_gib_and_that_of_linux64_below_0x38000000() {
    let map = [ram(0, 0xa_0000), ram(0x10_0000, 0xbff0_0000), ram(1 << 32, 1 << 32)];
    let initrd = |kernel: TestElf| {
        inspect(&platform(&map), &source(&kernel.build(), Some(&[1; 0x1001]), "")).unwrap().initrd
    };
    assert_eq!(initrd(pvh_kernel(Class::ELF64)), Some(0xbfff_e000..0xbfff_f001));
    assert_eq!(initrd(linux64_kernel()), Some(0x37ff_e000..0x37ff_f001));
}

#[test]
fn fault_c8_an_initrd_larger_than_ram_is_refused() {
    for kernel in [pvh_kernel(Class::ELF32), linux64_kernel()] {
        let kernel = kernel.build();
        let initrd = vec![0; 0x10_0001];
        let error = error(&SMALL_MAP, &source(&kernel, Some(&initrd), ""));
        let text = chain(&error);
        assert!(text.starts_with("initrd initrd: no free RAM below 0x"), "{text}");
        assert!(text.ends_with("for the 0x100001 bytes of the initrd"), "{text}");
    }
}

#[test]
fn fault_c8_an_initrd_that_fits_only_over_the_kernel_is_refused() {
    let kernel = pvh_kernel(Class::ELF32).build();
    let fits = vec![0; 0x10_0000 - 0x6000];
    let (_, inspection) = loaded(&SMALL_MAP, &source(&kernel, Some(&fits), ""));
    assert_eq!(inspection.initrd, Some(0x10_6000..0x20_0000));
    let overlaps = vec![0; 0x10_0000 - 0x6000 + 1];
    let error = error(&SMALL_MAP, &source(&kernel, Some(&overlaps), ""));
    assert!(matches!(error, BootError::Initrd { .. }), "{error}");
}

#[test]
fn fault_c8_a_bad_command_line_is_refused_before_anything_is_read() {
    let error = error(&SMALL_MAP, &source(b"not a kernel", None, "a\0b"));
    assert_eq!(chain(&error), "the kernel command line: has '\\0' at byte 1; printable ASCII is allowed");
}

#[test]
fn fault_c6_a_kernel_that_fills_conventional_memory_leaves_no_room_for_structures() {
    for kernel in [pvh_kernel(Class::ELF32), linux64_kernel()] {
        let kernel = kernel.load(0x1000, b"", 0x9_ec00);
        let error = error(&SMALL_MAP, &source(&kernel.build(), None, ""));
        assert!(matches!(error, BootError::Structures(PlaceError::NoRoom { .. })), "{error}");
    }
}

#[test]
fn fault_c6_a_message_names_the_file_the_field_and_the_end_of_ram() {
    let mut kernel = linux64_kernel();
    kernel.programs[1].p_memsz = 1 << 62;
    // Above 4 GiB the mapping would be at fault first.
    let pvh = kernel.pvh(&0x10_0000_u32.to_le_bytes()).build();
    assert_eq!(
        chain(&error(&SMALL_MAP, &source(&pvh, None, ""))),
        "kernel kernel: program header 1: p_paddr 0x104000, p_memsz 0x4000000000000000: \
         0x104000..0x4000000000104000 is not inside one region of RAM (RAM ends at 0x200000)"
    );
}

#[test]
fn a_file_that_is_no_elf_is_refused_by_what_it_is() {
    let message = |bytes: &[u8]| chain(&error(&SMALL_MAP, &source(bytes, None, "")));
    assert_eq!(
        message(b"\x1f\x8b\x08\0"),
        "kernel kernel is gzip-compressed; it must be a bzImage (vmlinuz), an ELF file (vmlinux) or have a Multiboot header"
    );
    assert!(message(&[7; 100]).contains("it begins with [07, 07, 07, 07]"));
}

#[test]
fn a_memory_map_that_cannot_be_handed_over_is_refused() {
    let kernel = linux64_kernel().build();
    for map in [vec![ram(0, 0)], vec![ram(u64::MAX, 2)], vec![reserved(0, 1); 129]] {
        let error = inspect(&platform(&map), &source(&kernel, None, "")).unwrap_err();
        assert!(matches!(error, BootError::Map(_)), "{error}");
    }
}

#[test]
fn guest_memory_that_lacks_the_ram_of_the_map_is_an_error() {
    let map = [ram(0, 0xa_0000), ram(0x10_0000, 0x10_0000)];
    let kernel = linux64_kernel().build();
    for (size, address) in [(0x10_0000_usize, 0x10_0000), (0x10_5000, 0x1f_f000)] {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), size)]).unwrap();
        let error = load(&memory, &platform(&map), &source(&kernel, Some(&[1; 0x1000]), "")).unwrap_err();
        let expected = matches!(
            error,
            BootError::Read { source: ReadError::Memory { address: found, .. }, .. } if found == address
        );
        assert!(expected, "{error:?}");
    }
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x10_0000), 0x10_0000)]).unwrap();
    let error = load(&memory, &platform(&map), &source(&kernel, None, "")).unwrap_err();
    assert!(matches!(error, BootError::Memory { address: 0x6000, .. }), "{error:?}");
}

#[test]
fn a_file_loads_as_its_bytes_do_and_twice() {
    let kernel = pvh_kernel(Class::ELF64).build();
    let initrd = vec![0xee; 0x3000];
    let (expected, _) = loaded(&SMALL_MAP, &source(&kernel, Some(&initrd), "a=b"));
    let files = [&kernel, &initrd].map(|bytes| {
        let file = TempFile::new().unwrap();
        file.as_file().write_all(bytes).unwrap();
        file
    });
    let source = BootSource {
        kernel: Image::open(files[0].as_path()).unwrap(),
        initrd: Some(Image::open(files[1].as_path()).unwrap()),
        cmdline: "a=b",
    };
    for _ in 0..2 {
        let (guest, _) = loaded(&SMALL_MAP, &source);
        assert!(guest.bytes(0, 0x20_0000) == expected.bytes(0, 0x20_0000));
    }
}

#[test]
fn fault_c6_a_kernel_cut_while_it_is_open_is_an_error() {
    let file = TempFile::new().unwrap();
    file.as_file().write_all(&linux64_kernel().build()).unwrap();
    let source = BootSource { kernel: Image::open(file.as_path()).unwrap(), initrd: None, cmdline: "" };
    for length in [0x210, 0x100, 0x20, 0] {
        file.as_file().set_len(length).unwrap();
        let guest = Guest::new(&SMALL_MAP);
        let text = chain(&load(&guest.memory, &platform(&SMALL_MAP), &source).unwrap_err());
        assert!(text.contains("the file ended before"), "{length:#x}: {text}");
        assert!(guest.only_ram_was_written());
    }
}

/// A valid image, some of its bytes changed, perhaps cut.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let valid = prop_oneof![
        Just(pvh_kernel(Class::ELF32).build()),
        Just(pvh_kernel(Class::ELF64).build()),
        Just(linux64_kernel().build()),
        Just(TestBzImage::new().0),
        Just(multiboot_kernel(Class::ELF32, 3).build()),
    ];
    let byte = prop_oneof![Just(0), Just(1), Just(0x10), Just(0x7f), Just(0x80), Just(0xff), any::<u8>()];
    (valid, prop::collection::vec((any::<prop::sample::Index>(), byte), 0..6), 0..64_usize).prop_map(
        |(mut image, changes, cut)| {
            for (at, byte) in changes {
                let at = at.index(image.len());
                image[at] = byte;
            }
            image.truncate(image.len() - cut.saturating_sub(50));
            image
        },
    )
}

proptest! {
    #[test]
    fn fault_c6_c7_c9_whatever_the_image_says_only_ram_is_written_and_segments_are_whole(
        image in mutated(),
        initrd in prop::option::of(1..0x3000_usize),
    ) {
        let initrd = initrd.map(|size| vec![0xee; size]);
        let guest = Guest::new(&SMALL_MAP);
        let source = source(&image, initrd.as_deref(), "console=ttyS0");
        let plan = Plan::new(&platform(&SMALL_MAP), &source);
        match load(&guest.memory, &platform(&SMALL_MAP), &source) {
            Ok(entry) => {
                let plan = plan.unwrap();
                prop_assert_eq!(plan.prepared.entry, entry);
                for Segment { file, memory, .. } in plan.segments {
                    let mut expected = image[file.start as usize..file.end as usize].to_vec();
                    expected.resize((memory.end - memory.start) as usize, 0);
                    prop_assert!(guest.bytes(memory.start, expected.len()) == expected, "{:#x?}", memory);
                }
            }
            Err(error) => prop_assert_eq!(plan.unwrap_err().to_string(), error.to_string()),
        }
        prop_assert!(guest.only_ram_was_written());
    }
}
