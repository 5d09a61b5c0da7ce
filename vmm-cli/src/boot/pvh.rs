//! The PVH start of day: `hvm_start_info` and the tables it points at.
//!
//! Xen `include/public/arch-x86/hvm/start_info.h`, version 1.

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::place::{Layout, Occupant};
use super::{Blob, BootError, BootRegs, Prepared, Request};

/// The initrd may be anywhere in the address space of 32-bit code.
const INITRD_BELOW: u64 = 1 << 32;

/// Lays out one block (start info, memory map, module list, command line) and the initrd.
#[expect(clippy::cast_possible_truncation, reason = "the map has at most 128 entries")]
pub(super) fn prepare(entry: u32, layout: &mut Layout, request: &Request<'_>) -> Result<Prepared, BootError> {
    let modules = usize::from(request.initrd.is_some());
    let map = request.platform.map;
    let map_at = size_of::<hvm_start_info>();
    let modules_at = map_at + map.len() * size_of::<hvm_memmap_table_entry>();
    let cmdline_at = modules_at + modules * size_of::<hvm_modlist_entry>();
    let size = cmdline_at + request.cmdline.len();
    let start_info = layout
        .lowest(size as u64, align_of::<hvm_start_info>() as u64, "hvm_start_info")
        .map_err(BootError::Structures)?;
    let initrd = request.place_initrd(|size| layout.highest(size, INITRD_BELOW, Occupant::Initrd))?;

    let address = u64::from(start_info);
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { address + modules_at as u64 } else { 0 },
        cmdline_paddr: address + cmdline_at as u64,
        rsdp_paddr: request.platform.rsdp.unwrap_or(0),
        memmap_paddr: address + map_at as u64,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut bytes = info.as_slice().to_vec();
    for entry in map {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind.number(),
            reserved: 0,
        };
        bytes.extend_from_slice(entry.as_slice());
    }
    if let Some(range) = &initrd {
        let module =
            hvm_modlist_entry { paddr: range.start, size: range.end - range.start, ..Default::default() };
        bytes.extend_from_slice(module.as_slice());
    }
    bytes.extend_from_slice(&request.cmdline);
    Ok(Prepared { entry: BootRegs::Pvh { entry, start_info }, blobs: vec![Blob { address, bytes }], initrd })
}
