//! Fuzz target: any bytes as a kernel, parsed and loaded into a guest of 4 MiB.
//!
//! Guest memory has nothing but the RAM of the map, so a write outside it fails the load; and what `inspect` has
//! found good must load.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_cli::boot::{BootSource, E820Entry, E820Kind, Image, Platform, inspect, load};
use vmm_vcpu::x86_64::BootRegs;

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
    let platform = Platform { map: &MAP, rsdp: None };
    let regions = [(GuestAddress(0), CONVENTIONAL), (GuestAddress(0x10_0000), EXTENDED)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).expect("guest memory");
    match (inspect(&platform, &source), load(&memory, &platform, &source)) {
        (Ok(inspection), Ok(entry)) => {
            assert_eq!(inspection.entry, entry);
            let address = match entry {
                BootRegs::Pvh { entry, .. } => u64::from(entry),
                BootRegs::Linux64 { entry, .. } => entry,
            };
            assert!(inspection.taken.iter().any(|range| range.contains(&address)), "entry {address:#x}");
        }
        (Err(inspected), Err(loaded)) => assert_eq!(inspected.to_string(), loaded.to_string()),
        (inspected, loaded) => panic!("inspect gives {inspected:?}, load gives {loaded:?}"),
    }
});
