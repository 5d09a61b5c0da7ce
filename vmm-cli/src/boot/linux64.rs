//! The 64-bit Linux boot protocol: `boot_params`, identity-mapped page tables and the GDT.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol", and `zero-page.rst`.

use std::mem::offset_of;
use std::ops::Range;

use linux_loader::bootparam::{boot_e820_entry, boot_params};

use super::place::{Layout, PAGE};
use super::{Blob, BootError, BootRegs, E820Entry, Prepared, Request};

/// Guest-physical addresses from 0 that are mapped onto themselves at the start.
pub(super) const MAPPED: u64 = 1 << 32;
/// Limit for the initrd: the protocol's `initrd_addr_max` for a kernel that does not name one is 0x37ffffff.
const INITRD_BELOW: u64 = 0x3800_0000;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: usize = 2 << 20;
const TABLE_ENTRIES: usize = 512;
/// Page directories that map [`MAPPED`], 1 GiB each.
const DIRECTORIES: usize = 4;
/// PML4, page directory pointers, page directories.
const TABLES: usize = 2 + DIRECTORIES;

/// Null, unused, `__BOOT_CS` = 0x10 (64-bit code), `__BOOT_DS` = 0x18 (flat data); both present and accessed.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const GDT_LIMIT: u16 = 8 * 4 - 1;

const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.12, the first that describes a 64-bit entry.
const VERSION: u16 = 0x020c;
/// A loader without a number of its own; a kernel ignores the initrd of loader 0.
const TYPE_OF_LOADER: u8 = 0xff;

/// Lays out `boot_params`, page tables, GDT, command line and the initrd.
pub(super) fn prepare(entry: u64, layout: &mut Layout, request: &Request<'_>) -> Result<Prepared, BootError> {
    let mut lowest =
        |size: usize, align, name| layout.lowest(size as u64, align, name).map_err(BootError::Structures);
    let boot_params = u64::from(lowest(size_of::<boot_params>(), PAGE, "boot_params")?);
    let page_table = u64::from(lowest(TABLES * TABLE_ENTRIES * 8, PAGE, "the page tables")?);
    let gdt = u64::from(lowest(size_of_val(&GDT), 8, "the GDT")?);
    let cmdline = lowest(request.cmdline.len(), 1, "the command line")?;
    let initrd = request.place_initrd(layout, INITRD_BELOW)?;
    let blobs = vec![
        Blob { address: boot_params, bytes: zero_page(layout, request.map, cmdline, initrd.as_ref()) },
        Blob { address: page_table, bytes: page_tables(page_table) },
        Blob { address: gdt, bytes: words(&GDT) },
        Blob { address: u64::from(cmdline), bytes: request.cmdline.clone() },
    ];
    let entry = BootRegs::Linux64 { entry, boot_params, page_table, gdt, gdt_limit: GDT_LIMIT };
    Ok(Prepared { entry, blobs, initrd })
}

/// The bytes of `boot_params`. Written field by field: linux-loader gives the structure no safe view as bytes.
fn zero_page(layout: &Layout, map: &[E820Entry], cmdline: u32, initrd: Option<&Range<u64>>) -> Vec<u8> {
    let mut page = vec![0; size_of::<boot_params>()];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(boot_params, hdr.boot_flag), &BOOT_FLAG.to_le_bytes());
    put(offset_of!(boot_params, hdr.header), b"HdrS");
    put(offset_of!(boot_params, hdr.version), &VERSION.to_le_bytes());
    put(offset_of!(boot_params, hdr.type_of_loader), &[TYPE_OF_LOADER]);
    put(offset_of!(boot_params, hdr.cmd_line_ptr), &cmdline.to_le_bytes());
    if let Some(Range { start, end }) = initrd {
        // Both are below INITRD_BELOW: their upper halves, which have fields of their own, stay 0.
        put(offset_of!(boot_params, hdr.ramdisk_image), &start.to_le_bytes()[..4]);
        put(offset_of!(boot_params, hdr.ramdisk_size), &(end - start).to_le_bytes()[..4]);
    }
    put(offset_of!(boot_params, e820_entries), &[layout.map_entries()]);
    for (index, entry) in map.iter().enumerate() {
        let at = offset_of!(boot_params, e820_table) + index * size_of::<boot_e820_entry>();
        put(at + offset_of!(boot_e820_entry, addr), &entry.start.to_le_bytes());
        put(at + offset_of!(boot_e820_entry, size), &entry.size.to_le_bytes());
        put(at + offset_of!(boot_e820_entry, r#type), &entry.kind.number().to_le_bytes());
    }
    page
}

/// PML4, page directory pointers and directories at `base`, in this order: 4 GiB in pages of 2 MiB.
fn page_tables(base: u64) -> Vec<u8> {
    let table = |index: usize| (base + index as u64 * PAGE) | PRESENT_WRITABLE;
    let mut entries = vec![0; TABLES * TABLE_ENTRIES];
    entries[0] = table(1);
    for directory in 0..DIRECTORIES {
        entries[TABLE_ENTRIES + directory] = table(2 + directory);
    }
    for (page, entry) in entries[2 * TABLE_ENTRIES..].iter_mut().enumerate() {
        *entry = (page * LARGE_PAGE_SIZE) as u64 | LARGE_PAGE | PRESENT_WRITABLE;
    }
    words(&entries)
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
