//! Fuzz target: any bytes as a kernel, planned into any memory map with an initrd of any size, and loaded if the map is
//! small.
//!
//! The input is a header, then the kernel: number of map entries (1 byte), length of the command line (2), size of the
//! initrd (8, 0 for none), and for each entry start (8), size (8) and whether it is RAM (1).

#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_cli::boot::{BootSource, E820Entry, E820Kind, Image, Platform};

mod plan;

/// Most RAM, and the largest initrd, with which a plan is carried out.
const SMALL: u64 = 8 << 20;
/// File systems have a limit below 2^63.
const LARGEST_INITRD: u64 = 1 << 43;

/// The initrd: a file without a name, all of it a hole.
static INITRD: LazyLock<File> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("boot-plan-{}", std::process::id()));
    let file =
        File::options().read(true).write(true).create_new(true).open(&path).expect("the initrd's file");
    std::fs::remove_file(path).expect("the initrd's file");
    file
});

fn initrd(size: u64) -> Option<Image<'static>> {
    INITRD.set_len(size % LARGEST_INITRD).expect("the initrd's size");
    Image::open(Path::new(&format!("/proc/self/fd/{}", INITRD.as_raw_fd()))).ok()
}

/// Takes `N` bytes from the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn map(bytes: &mut &[u8], entries: u8) -> Option<Vec<E820Entry>> {
    (0..entries)
        .map(|_| {
            let start = u64::from_le_bytes(take(bytes)?);
            let size = u64::from_le_bytes(take(bytes)?);
            let [kind] = take(bytes)?;
            let kind = if kind % 2 == 0 { E820Kind::Reserved } else { E820Kind::Ram };
            Some(E820Entry { start, size, kind })
        })
        .collect()
}

/// The RAM of `map` and nothing else, unless it is much, in disorder or overlapping.
fn memory(map: &[E820Entry]) -> Option<GuestMemoryMmap<()>> {
    let ram = || map.iter().filter(|entry| entry.kind == E820Kind::Ram);
    let total = ram().try_fold(0, |sum: u64, entry| sum.checked_add(entry.size))?;
    if total > SMALL {
        return None;
    }
    let ranges: Vec<_> = ram().map(|entry| (GuestAddress(entry.start), entry.size as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).ok()
}

fn run(mut bytes: &[u8]) -> Option<()> {
    let [entries] = take(&mut bytes)?;
    let cmdline = "a".repeat(usize::from(u16::from_le_bytes(take(&mut bytes)?)));
    let initrd = initrd(u64::from_le_bytes(take(&mut bytes)?));
    let map = map(&mut bytes, entries)?;
    let platform = Platform { map: &map, rsdp: None };
    let source = BootSource { kernel: Image::from_bytes("kernel", bytes).ok()?, initrd, cmdline: &cmdline };
    let plan = plan::check(&platform, &source);
    if source.initrd.as_ref().is_none_or(|image| image.len() <= SMALL) {
        plan::load_agrees(&memory(&map)?, &platform, &source, &plan);
    }
    Some(())
}

fuzz_target!(|bytes: &[u8]| {
    run(bytes);
});
