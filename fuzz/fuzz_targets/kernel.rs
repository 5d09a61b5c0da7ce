//! Fuzz target: any bytes as a kernel of any format, parsed and loaded into a guest of 4 MiB.
//!
//! Guest memory has nothing but the RAM of the map, so a write outside it fails the load; and what `inspect` has
//! found good must load.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_cli::boot::{BootSource, E820Entry, E820Kind, Image, Platform};

mod plan;

const CONVENTIONAL: usize = 0xa_0000;
const EXTENDED: usize = 0x30_0000;
const MAP: [E820Entry; 2] = [ram(0, CONVENTIONAL), ram(0x10_0000, EXTENDED)];

const fn ram(start: u64, size: usize) -> E820Entry {
    E820Entry { start, size: size as u64, kind: E820Kind::Ram }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(kernel) = Image::from_bytes("kernel", bytes) else {
        return;
    };
    let source =
        BootSource { kernel, initrd: Image::from_bytes("initrd", &[1; 100]).ok(), cmdline: "console=ttyS0" };
    let platform = Platform { map: &MAP, rsdp: Some(0xe_0000) };
    let regions = [(GuestAddress(0), CONVENTIONAL), (GuestAddress(0x10_0000), EXTENDED)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).expect("guest memory");
    plan::load_agrees(&memory, &platform, &source, &plan::check(&platform, &source));
});
