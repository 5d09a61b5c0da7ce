//! Tests of the bzImage: each check has its failing case, and placement its preferences.

use super::super::E820Entry;
use super::super::testing::{TestBzImage, field, ram, reserved};
use super::*;

const MIB: u64 = 1 << 20;
const MAP: [E820Entry; 2] = [ram(0, 0x9_f000), ram(MIB, 7 * MIB)];

fn load_into(map: &[E820Entry], image: &TestBzImage) -> Result<Kernel, BzImageError> {
    load(&Image::from_bytes("kernel", &image.0).unwrap(), &mut Layout::new(map).unwrap())
}

fn error(image: &TestBzImage) -> BzImageError {
    load_into(&MAP, image).unwrap_err()
}

/// The kernel's range of memory, and `code32_start` and `kernel_alignment` as it is told.
fn placed(map: &[E820Entry], image: &TestBzImage) -> (Range<u64>, u32, u32) {
    let kernel = load_into(map, image).unwrap();
    let EntryPoint::Linux64 { entry, header } = kernel.entry else { panic!("{:?}", kernel.entry) };
    let [Segment { memory, .. }] = &kernel.segments[..] else { panic!("{:?}", kernel.segments) };
    assert_eq!(entry, memory.start + 0x200);
    let word = |field: usize| {
        let at = field - setup_header::START;
        u32::from_le_bytes(header.as_bytes()[at..at + 4].try_into().unwrap())
    };
    (memory.clone(), word(field::CODE32_START), word(field::KERNEL_ALIGNMENT))
}

#[test]
fn the_kernel_proper_is_loaded_at_its_preferred_address_and_entered_0x200_bytes_later() {
    let kernel = load_into(&MAP, &TestBzImage::new()).unwrap();
    let memory = MIB..MIB + 0x8000;
    assert_eq!(kernel.segments, [Segment { occupant: Occupant::Kernel, file: 0x400..0x800, memory }]);
    assert!(matches!(kernel.entry, EntryPoint::Linux64 { entry: 0x10_0200, .. }));
}

#[test]
fn what_follows_the_kernel_proper_in_the_file_is_not_loaded() {
    let mut signed = TestBzImage::new();
    signed.0.extend([0xee; 0x1000]);
    assert_eq!(load_into(&MAP, &signed).unwrap().segments[0].file, 0x400..0x800);
}

#[test]
fn the_header_is_taken_to_its_end_and_no_byte_further() {
    let EntryPoint::Linux64 { header, .. } = load_into(&MAP, &TestBzImage::new()).unwrap().entry else {
        panic!("entry")
    };
    let image = TestBzImage::new().0;
    let (taken, rest) = header.as_bytes().split_at(0x26c - 0x1f1);
    assert_eq!(taken, &image[0x1f1..0x26c]);
    assert_eq!(image[0x26c], 0xcc);
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn fault_c7_setup_sects_0_means_4_and_255_is_taken_at_its_word() {
    for (setup_sects, start) in [(0, 5 * 512), (255, 256 * 512)] {
        let image = TestBzImage::new().with(field::SETUP_SECTS, [setup_sects]);
        let error = error(&image);
        let expected = matches!(error, BzImageError::OutsideFile { end, .. } if end == start + 0x400);
        assert!(expected, "{error}");
        let mut longer = image;
        longer.0.resize(start as usize + 0x400, 0);
        assert_eq!(load_into(&MAP, &longer).unwrap().segments[0].file, start..start + 0x400);
    }
}

#[test]
fn fault_c7_a_file_shorter_than_its_header_says_is_refused_at_every_length() {
    let whole = TestBzImage::new();
    for length in 1..whole.0.len() {
        let error = error(&TestBzImage(whole.0[..length].to_vec()));
        let expected = if length < 0x290 {
            matches!(error, BzImageError::Truncated { .. })
        } else {
            matches!(error, BzImageError::OutsideFile { setup_sects: 1, syssize: 0x40, end: 0x800, .. })
        };
        assert!(expected, "{length:#x}: {error}");
    }
}

#[test]
fn fault_c7_a_huge_syssize_is_past_the_end_of_the_file() {
    for syssize in [0x41, 0x1000_0000, u32::MAX] {
        let error = error(&TestBzImage::new().with(field::SYSSIZE, syssize.to_le_bytes()));
        assert!(matches!(error, BzImageError::OutsideFile { syssize: s, .. } if s == syssize), "{error}");
    }
}

#[test]
fn fault_c7_a_syssize_that_ends_before_the_entry_is_refused() {
    for syssize in [0_u32, 1, 0x20] {
        let error = error(&TestBzImage::new().with(field::SYSSIZE, syssize.to_le_bytes()));
        assert!(matches!(error, BzImageError::NoEntry { syssize: found } if found == syssize), "{error}");
    }
    assert!(load_into(&MAP, &TestBzImage::new().with(field::SYSSIZE, [0x21, 0, 0, 0])).is_ok());
}

#[test]
fn fault_c7_a_boot_protocol_before_2_06_is_refused() {
    for version in [0_u16, 0x0100, 0x0205] {
        let error = error(&TestBzImage::new().with(field::VERSION, version.to_le_bytes()));
        assert!(matches!(error, BzImageError::Version { found } if found == version), "{error}");
    }
    let text = error(&TestBzImage::new().with(field::VERSION, [4, 2])).to_string();
    assert_eq!(text, "the boot protocol is 2.04; it must be 2.06 or newer");
}

#[test]
fn fault_c7_a_kernel_without_a_64_bit_entry_is_refused_by_that_name() {
    let text = "no 64-bit entry: XLF_KERNEL_64 is not set in xloadflags";
    for xloadflags in [0_u16, 0xfffe] {
        let error = error(&TestBzImage::new().with(field::XLOADFLAGS, xloadflags.to_le_bytes()));
        assert!(error.to_string().starts_with(&format!("{text} {xloadflags:#x} of")), "{error}");
    }
    // Before 2.12 the field is somebody else's.
    for version in [0x06, 0x0b] {
        let error = error(&TestBzImage::new().with(field::VERSION, [version, 2]));
        assert!(matches!(error, BzImageError::No64BitEntry { xloadflags: 0, .. }), "{error}");
    }
    assert!(load_into(&MAP, &TestBzImage::new().with(field::VERSION, [0x0c, 2])).is_ok());
}

#[test]
fn fault_c7_a_wrong_boot_flag_a_zimage_and_a_header_of_odd_length_are_refused() {
    let flag = error(&TestBzImage::new().with(field::BOOT_FLAG, [0xaa, 0x55]));
    assert!(matches!(flag, BzImageError::BootFlag { found: 0x55aa }), "{flag}");
    let low = error(&TestBzImage::new().with(field::LOADFLAGS, [0]));
    assert!(matches!(low, BzImageError::LoadedLow), "{low}");
    for (length, end) in [(0, 0x202), (0x61, 0x263), (0x8f, 0x291), (0xff, 0x301)] {
        let error = error(&TestBzImage::new().with(field::JUMP_LENGTH, [length]));
        assert!(matches!(error, BzImageError::HeaderEnd { end: found } if found == end), "{error}");
    }
    for length in [0x62, 0x8e] {
        assert!(load_into(&MAP, &TestBzImage::new().with(field::JUMP_LENGTH, [length])).is_ok());
    }
}

#[test]
fn a_taken_preferred_address_moves_a_relocatable_kernel_up_by_its_alignment() {
    let map = [MAP[0], MAP[1], reserved(0x10_7000, 0x1000)];
    let memory = 0x11_0000..0x11_8000;
    assert_eq!(placed(&map, &TestBzImage::new()), (memory, 0x11_0000, 0x1_0000));
}

#[test]
fn where_the_preferred_alignment_finds_no_place_the_least_one_is_used_and_told() {
    let map = [ram(MIB, MIB), reserved(0x10_7000, 0x1000)];
    let image = TestBzImage::new().with(field::KERNEL_ALIGNMENT, (8_u32 << 20).to_le_bytes());
    assert_eq!(placed(&map, &image), (0x10_8000..0x11_0000, 0x10_8000, 0x1000));
    let strict = image.with(field::MIN_ALIGNMENT, [0]);
    assert!(matches!(load_into(&map, &strict).unwrap_err(), BzImageError::Place { .. }));
}

#[test]
fn a_least_alignment_above_the_preferred_one_asks_for_nothing_more() {
    let image = TestBzImage::new().with(field::MIN_ALIGNMENT, [31]);
    assert_eq!(placed(&MAP, &image).0, MIB..MIB + 0x8000);
}

#[test]
fn fault_c7_a_kernel_that_is_not_relocatable_has_one_place() {
    let fixed = TestBzImage::new().with(field::RELOCATABLE_KERNEL, [0]).with(field::KERNEL_ALIGNMENT, [0; 4]);
    assert_eq!(placed(&MAP, &fixed), (MIB..MIB + 0x8000, 0x10_0000, 0));
    for map in [vec![MAP[0], MAP[1], reserved(0x10_7fff, 1)], vec![ram(MIB + 1, MIB)], vec![ram(0, MIB)]] {
        let error = load_into(&map, &fixed).unwrap_err();
        assert!(matches!(error, BzImageError::Place { relocatable: false, .. }), "{error}");
    }
}

#[test]
fn fault_c7_an_init_size_beyond_ram_says_how_much_memory_is_needed() {
    let image = TestBzImage::new().with(field::INIT_SIZE, (64_u32 << 20).to_le_bytes());
    assert_eq!(
        error(&image).to_string(),
        "needs 0x4000000 bytes (init_size 0x4000000) at pref_address 0x100000 or above; the guest needs at least 65 MiB \
         of memory"
    );
    let exact = [ram(0, 65 * MIB)];
    assert_eq!(placed(&exact, &image).0, MIB..65 * MIB);
    let huge = TestBzImage::new().with(field::INIT_SIZE, [0xff; 4]);
    for map in [&MAP[..], &[ram(0, 1 << 40)]] {
        let error = load_into(map, &huge).unwrap_err();
        assert!(matches!(error, BzImageError::Place { init_size: u32::MAX, .. }), "{error}");
    }
}

#[test]
fn fault_c7_an_init_size_below_the_code_does_not_shrink_it() {
    let image = TestBzImage::new().with(field::INIT_SIZE, [0; 4]);
    assert_eq!(placed(&MAP, &image).0, MIB..MIB + 0x400);
}

#[test]
fn fault_c7_a_preferred_address_outside_the_mapped_4_gib_is_refused() {
    for address in [MAPPED, MAPPED - 0x1000, u64::MAX, u64::MAX - 0x8000] {
        for relocatable in [0, 1] {
            let image = TestBzImage::new()
                .with(field::PREF_ADDRESS, address.to_le_bytes())
                .with(field::RELOCATABLE_KERNEL, [relocatable]);
            let error = load_into(&[ram(0, 1 << 40)], &image).unwrap_err();
            assert!(
                matches!(error, BzImageError::Place { preferred, .. } if preferred == address),
                "{error}"
            );
        }
    }
    let none = TestBzImage::new().with(field::PREF_ADDRESS, [0; 8]);
    assert_eq!(placed(&MAP, &none).0, MIB..MIB + 0x8000);
}

#[test]
fn fault_c7_alignments_are_powers_of_two_below_4_gib() {
    for value in [0, 3, u32::MAX] {
        let error = error(&TestBzImage::new().with(field::KERNEL_ALIGNMENT, value.to_le_bytes()));
        assert!(matches!(error, BzImageError::Alignment { value: found } if found == value), "{error}");
    }
    for exponent in [32, 64, 255] {
        let error = error(&TestBzImage::new().with(field::MIN_ALIGNMENT, [exponent]));
        assert!(matches!(error, BzImageError::MinAlignment { .. }), "{error}");
    }
}
