//! The Multiboot information: what a kernel is told through `ebx`.
//!
//! Multiboot Specification 0.6.96, section 3.3.

use super::super::place::{Layout, Occupant};
use super::super::{Blob, BootError, BootRegs, E820Entry, E820Kind, Prepared, Request};

/// Size of the information structure, framebuffer fields included.
const INFO: usize = 116;
/// Size of an entry of the memory map: its own size, start, length, type.
const ENTRY: usize = 24;
/// Size of a module structure: start, end, string, reserved.
const MODULE: usize = 16;

const HAS_MEMORY: u32 = 1 << 0;
const HAS_CMDLINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MAP: u32 = 1 << 6;
const HAS_LOADER_NAME: u32 = 1 << 9;

/// Kernels take the first word of the command line for their own name; it says nothing about the host.
const KERNEL_NAME: &[u8] = b"kernel ";
const MODULE_STRING: &[u8] = b"initrd\0";
const LOADER_NAME: &[u8] = b"vmm\0";

/// Addresses of modules have 32 bits.
const INITRD_BELOW: u64 = 1 << 32;
const KIB: u64 = 1024;
const CONVENTIONAL: u64 = 640 * KIB;
const EXTENDED: u64 = 1024 * KIB;

/// Lays out one block (information, memory map, module, strings) and the initrd.
pub(in super::super) fn prepare(
    entry: u32,
    layout: &mut Layout,
    request: &Request<'_>,
) -> Result<Prepared, BootError> {
    let map = request.platform.map;
    let modules = usize::from(request.initrd.is_some());
    let module_at = INFO + map.len() * ENTRY;
    let cmdline_at = module_at + modules * MODULE;
    let module_string_at = cmdline_at + KERNEL_NAME.len() + request.cmdline.len();
    let loader_name_at = module_string_at + MODULE_STRING.len();
    let size = loader_name_at + LOADER_NAME.len();
    let info = layout.lowest(size as u64, 8, "the Multiboot information").map_err(BootError::Structures)?;
    let initrd = request.place_initrd(|size| layout.highest(size, INITRD_BELOW, Occupant::Initrd))?;

    let mut bytes = vec![0; INFO];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let address = |at: usize| info + word(at as u64);
    let has_modules = if initrd.is_some() { HAS_MODULES } else { 0 };
    put(0, HAS_MEMORY | HAS_CMDLINE | has_modules | HAS_MAP | HAS_LOADER_NAME);
    put(4, kib_from(map, 0, CONVENTIONAL));
    put(8, kib_from(map, EXTENDED, u64::MAX));
    put(16, address(cmdline_at));
    if initrd.is_some() {
        put(20, 1);
        put(24, address(module_at));
    }
    put(44, word((map.len() * ENTRY) as u64));
    put(48, address(INFO));
    put(64, address(loader_name_at));
    bytes.extend(map.iter().flat_map(map_entry));
    if let Some(range) = &initrd {
        let words = [word(range.start), word(range.end), address(module_string_at), 0];
        bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
    }
    for part in [KERNEL_NAME, &request.cmdline, MODULE_STRING, LOADER_NAME] {
        bytes.extend_from_slice(part);
    }
    let entry = BootRegs::Multiboot { entry, info };
    Ok(Prepared { entry, blobs: vec![Blob { address: u64::from(info), bytes }], initrd })
}

/// The bytes of an entry of the memory map. Its size field does not count itself.
fn map_entry(entry: &E820Entry) -> Vec<u8> {
    let mut bytes = word(ENTRY as u64 - 4).to_le_bytes().to_vec();
    bytes.extend(entry.start.to_le_bytes());
    bytes.extend(entry.size.to_le_bytes());
    bytes.extend(entry.kind.number().to_le_bytes());
    bytes
}

/// KiB of RAM from `start` on to the first byte that is not RAM, or to `limit`.
fn kib_from(map: &[E820Entry], start: u64, limit: u64) -> u32 {
    map.iter()
        .filter(|entry| entry.kind == E820Kind::Ram)
        .map(|entry| (entry.start, (entry.start + entry.size).min(limit)))
        .find(|(first, end)| *first <= start && start < *end)
        .map_or(0, |(_, end)| u32::try_from((end - start) / KIB).unwrap_or(u32::MAX))
}

/// An address or size below 4 GiB.
#[expect(clippy::cast_possible_truncation, reason = "structures and modules are placed below 4 GiB")]
fn word(value: u64) -> u32 {
    value as u32
}
