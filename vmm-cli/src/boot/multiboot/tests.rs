//! Tests of the Multiboot header and information: each check has its failing case.

use ::elf::file::Class;

use super::super::testing::{
    CODE, Guest, IN_FRONT, SMALL_MAP, TestElf, multiboot_header, multiboot_kernel, platform, put, pvh_kernel,
    ram, reserved,
};
use super::super::{BootRegs, BootSource, E820Entry, Inspection, inspect, load};
use super::*;

/// Where the sample's header is; its bytes are loaded from 0x40 bytes before it.
const AT: usize = 0x80;

/// A file that is no ELF: padding, code, header at [`AT`], to be loaded at 1 MiB with a BSS of 0x1000 bytes.
fn flat(change: impl FnOnce(&mut [u32; 5])) -> Vec<u8> {
    let mut addresses = [0x10_0040, 0x10_0000, 0x10_0100, 0x10_1100, 0x10_0008];
    change(&mut addresses);
    let mut file = vec![0xcc; 0x140];
    put(&mut file, 0x48, &CODE);
    put(&mut file, AT, &multiboot_header(1 << 16 | 1, &addresses));
    file
}

fn parsed(file: &[u8]) -> Result<Option<Kernel>, MultibootError> {
    super::flat(&Image::from_bytes("kernel", file).unwrap())
}

fn error(change: impl FnOnce(&mut [u32; 5])) -> MultibootError {
    parsed(&flat(change)).unwrap_err()
}

fn source<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>, cmdline: &'a str) -> BootSource<'a> {
    BootSource {
        kernel: Image::from_bytes("kernel", kernel).unwrap(),
        initrd: initrd.map(|bytes| Image::from_bytes("initrd", bytes).unwrap()),
        cmdline,
    }
}

fn entered(map: &[E820Entry], file: &[u8]) -> BootRegs {
    inspect(&platform(map), &source(file, None, "")).unwrap().entry
}

fn refused(map: &[E820Entry], file: &[u8]) -> String {
    let error = inspect(&platform(map), &source(file, None, "")).unwrap_err();
    super::super::tests::chain(&error)
}

#[test]
fn a_header_is_found_at_multiples_of_4_in_the_first_8_kib() {
    let header = multiboot_header(3, &[]);
    for at in [0, 4, 0x1000, SEARCHED - header.len()] {
        let mut file = vec![0; 0x3000];
        put(&mut file, at, &header);
        let found = find(&Image::from_bytes("kernel", &file).unwrap()).unwrap();
        assert_eq!(found, Some(Header { offset: at, flags: 3, addresses: None }));
        file.truncate(at + header.len());
        assert!(find(&Image::from_bytes("kernel", &file).unwrap()).unwrap().is_some());
        file.truncate(at + header.len() - 1);
        if !file.is_empty() {
            assert_eq!(find(&Image::from_bytes("kernel", &file).unwrap()).unwrap(), None);
        }
    }
    for at in [1, 2, SEARCHED - header.len() + 4, SEARCHED] {
        let mut file = vec![0; 0x3000];
        put(&mut file, at, &header);
        assert_eq!(find(&Image::from_bytes("kernel", &file).unwrap()).unwrap(), None, "{at}");
    }
}

#[test]
fn fault_c9_a_magic_with_a_bad_checksum_is_no_header_and_a_later_one_counts() {
    let mut file = flat(|_| ());
    put(&mut file, 0, &multiboot_header(0, &[]));
    file[8] ^= 1;
    assert!(parsed(&file).unwrap().is_some());
    file[AT + 8] ^= 1;
    assert!(parsed(&file).unwrap().is_none());
    let mut elf = multiboot_kernel(Class::ELF32, 0).build();
    elf[IN_FRONT + 8] ^= 1;
    let text = refused(&SMALL_MAP, &elf);
    assert!(text.contains("no Multiboot header with a valid checksum in the first 8 KiB"), "{text}");
}

#[test]
fn fault_c9_a_flag_that_cannot_be_served_is_refused_and_a_hint_is_not() {
    for bit in 0..32 {
        let elf = multiboot_kernel(Class::ELF32, 1 << bit).build();
        let found = find(&Image::from_bytes("kernel", &elf).unwrap());
        match (bit, found) {
            (0 | 1 | 16.., Ok(Some(_))) => {}
            (2..16, Err(MultibootError::Flags { offset: IN_FRONT, flags })) => assert_eq!(flags, 1 << bit),
            (_, other) => panic!("{bit}: {other:?}"),
        }
    }
}

#[test]
fn the_address_fields_are_followed() {
    let kernel = parsed(&flat(|_| ())).unwrap().unwrap();
    let memory = 0x10_0000..0x10_1100;
    assert_eq!(kernel.segments, [Segment { occupant: Occupant::AddressFields, file: 0x40..0x140, memory }]);
    assert_eq!(kernel.entry, EntryPoint::Multiboot(0x10_0008));
}

#[test]
fn a_load_end_of_0_is_the_end_of_the_file_and_a_bss_end_of_0_is_no_bss() {
    let mut file = flat(|addresses| (addresses[2], addresses[3]) = (0, 0));
    file.extend([0; 0x10]);
    let kernel = parsed(&file).unwrap().unwrap();
    assert_eq!(
        (&kernel.segments[0].file, &kernel.segments[0].memory),
        (&(0x40..0x150), &(0x10_0000..0x10_0110))
    );
}

#[test]
fn the_address_fields_of_an_elf_file_go_before_its_program_headers() {
    let mut elf = multiboot_kernel(Class::ELF32, 0).build();
    put(
        &mut elf,
        IN_FRONT,
        &multiboot_header(1 << 16, &[0x18_0000 + IN_FRONT as u32, 0x18_0000, 0, 0, 0x18_0004]),
    );
    assert!(matches!(entered(&SMALL_MAP, &elf), BootRegs::Multiboot { entry: 0x18_0004, .. }));
}

#[test]
fn fault_c9_load_addresses_that_are_inverted_are_refused() {
    let load = error(|addresses| addresses[1] = 0x10_0041);
    assert!(matches!(load, MultibootError::LoadAddress { load: 0x10_0041, offset: 0x80, .. }), "{load}");
    let end = error(|addresses| addresses[2] = 0xf_ffff);
    assert!(matches!(end, MultibootError::Inverted { field: "load_end_addr", end: 0xf_ffff, .. }), "{end}");
    let bss = error(|addresses| addresses[3] = 0x10_00ff);
    assert_eq!(bss.to_string(), "bss_end_addr 0x1000ff is below load_end_addr 0x100100");
}

#[test]
fn fault_c9_load_addresses_outside_the_file_are_refused() {
    let before = error(|addresses| addresses[1] = 0x10_0040 - 0x81);
    assert!(matches!(before, MultibootError::LoadAddress { .. }), "{before}");
    assert!(parsed(&flat(|addresses| addresses[1] = 0x10_0040 - 0x80)).is_ok());
    let after = error(|addresses| (addresses[2], addresses[3]) = (0x10_0101, 0));
    assert!(
        matches!(after, MultibootError::OutsideFile { end: 0x10_0101, offset: 0x40, length: 0x140, .. }),
        "{after}"
    );
    for length in AT + 12..AT + 32 {
        let error = parsed(&flat(|_| ())[..length]).unwrap_err();
        assert!(matches!(error, MultibootError::Truncated { offset: AT, .. }), "{length}: {error}");
    }
}

#[test]
fn fault_c9_load_addresses_outside_ram_are_refused() {
    let far = flat(|addresses| *addresses = [0xffff_ffff, 0xffff_ffbf, 0, 0, 0xffff_ffff]);
    assert_eq!(
        refused(&SMALL_MAP, &far),
        "kernel kernel: load_addr to bss_end_addr: 0x100 bytes at 0xffffffbf: 0xffffffbf..0x1000000bf is not inside one region of RAM (RAM ends at \
         0x200000)"
    );
    let bss = flat(|addresses| addresses[3] = 0x20_0001);
    assert!(refused(&SMALL_MAP, &bss).contains("is not inside one region of RAM"));
    let map = [SMALL_MAP[0], SMALL_MAP[2], reserved(0x10_1000, 1)];
    assert!(refused(&map, &flat(|_| ())).contains("overlaps a reserved range"));
}

#[test]
fn fault_c9_the_entry_must_be_in_bytes_of_the_file() {
    for entry in [0, 0xf_ffff, 0x10_0100, 0x10_1000, u32::MAX] {
        let error = error(|addresses| addresses[4] = entry);
        assert!(
            matches!(error, MultibootError::EntryOutside { entry: found, .. } if found == entry),
            "{error}"
        );
    }
    let empty = error(|addresses| addresses[2] = addresses[1]);
    assert!(matches!(empty, MultibootError::EntryOutside { .. }), "{empty}");
    let wide = multiboot_kernel(Class::ELF64, 0).entry((1 << 32) | 0x10_0004).build();
    assert_eq!(
        refused(&SMALL_MAP, &wide),
        "kernel kernel: e_entry 0x100100004 is outside the bytes that PT_LOAD segments take from the file; it must be \
         the physical address of code"
    );
}

#[test]
fn fault_c9_a_file_that_is_no_elf_needs_the_address_fields() {
    let mut file = vec![0; 0x100];
    put(&mut file, 0, &multiboot_header(3, &[]));
    let error = parsed(&file).unwrap_err();
    assert!(matches!(error, MultibootError::NoAddresses { offset: 0, flags: 3 }), "{error}");
}

#[test]
fn the_note_goes_before_the_header_and_the_header_before_e_entry() {
    for class in [Class::ELF32, Class::ELF64] {
        let mut both = pvh_kernel(class).build();
        put(&mut both, IN_FRONT, &multiboot_header(0, &[]));
        assert!(matches!(entered(&SMALL_MAP, &both), BootRegs::Pvh { .. }));
        let header = multiboot_kernel(class, 0).build();
        assert!(matches!(entered(&SMALL_MAP, &header), BootRegs::Multiboot { entry: 0x10_0004, .. }));
    }
}

/// Loads an ELF32 kernel into fresh memory.
fn loaded(map: &[E820Entry], initrd: Option<&[u8]>, cmdline: &str) -> (Guest, Inspection, u64) {
    let kernel = multiboot_kernel(Class::ELF32, 3).build();
    let source = source(&kernel, initrd, cmdline);
    let guest = Guest::new(map);
    let inspection = inspect(&platform(map), &source).unwrap();
    assert_eq!(load(&guest.memory, &platform(map), &source).unwrap(), inspection.entry);
    assert!(guest.only_ram_was_written());
    let BootRegs::Multiboot { info, .. } = inspection.entry else { panic!("{:?}", inspection.entry) };
    (guest, inspection, u64::from(info))
}

#[test]
fn the_kernel_is_told_of_memory_module_command_line_and_loader() {
    let initrd = [0xee; 0x1234];
    let (guest, inspection, info) = loaded(&SMALL_MAP, Some(&initrd), "arg1 arg2");
    assert_eq!(guest.bytes(0x10_0000, CODE.len()), CODE);
    let field = |at: u64| u64::from(guest.u32(info + at));

    assert_eq!(field(0), 0b10_0100_1101);
    assert_eq!((field(4), field(8)), (0x9_fc00 / 1024, 1024));
    assert_eq!(guest.bytes(field(16), 17), b"kernel arg1 arg2\0");
    assert_eq!(guest.bytes(field(64), 4), b"vmm\0");

    let start = 0x20_0000 - 0x2000;
    assert_eq!(inspection.initrd, Some(start..start + 0x1234));
    assert_eq!(field(20), 1);
    let module = |at: u64| u64::from(guest.u32(field(24) + at));
    assert_eq!((module(0), module(4), module(12)), (start, start + 0x1234, 0));
    assert_eq!(guest.bytes(module(8), 7), b"initrd\0");
    assert_eq!(guest.bytes(start, 0x1234), initrd);

    assert_eq!(field(44), 3 * 24);
    for (index, (start, size, kind)) in
        [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0x10_0000, 0x10_0000, 1)].into_iter().enumerate()
    {
        let at = field(48) + 24 * index as u64;
        assert_eq!(guest.u32(at), 20);
        assert_eq!((guest.u64(at + 4), guest.u64(at + 12), guest.u32(at + 20)), (start, size, kind));
    }
}

#[test]
fn without_an_initrd_there_is_no_module() {
    let (guest, inspection, info) = loaded(&SMALL_MAP, None, "");
    assert_eq!(inspection.initrd, None);
    assert_eq!(guest.u32(info), 0b10_0100_0101);
    assert_eq!((guest.u32(info + 20), guest.u32(info + 24)), (0, 0));
    assert_eq!(guest.bytes(u64::from(guest.u32(info + 16)), 8), b"kernel \0");
}

#[test]
fn upper_memory_ends_at_the_first_hole_and_the_initrd_below_4_gib() {
    let map = [ram(0, 0xa_0000), ram(0x10_0000, 0xbff0_0000), ram(1 << 32, 1 << 32)];
    let mut kernel = TestElf::new(Class::ELF32).load(0x1000, &CODE, 24).entry(0x1000).build();
    put(&mut kernel, IN_FRONT, &multiboot_header(0, &[]));
    let source = source(&kernel, Some(&[1; 0x1001]), "");
    let plan = super::super::Plan::new(&platform(&map), &source).unwrap();
    assert_eq!(plan.prepared.initrd, Some(0xbfff_e000..0xbfff_f001));
    let info = &plan.prepared.blobs[0].bytes;
    let word = |at: usize| u32::from_le_bytes(info[at..at + 4].try_into().unwrap());
    assert_eq!((word(4), word(8)), (640, 0xbff0_0000 / 1024));
}
