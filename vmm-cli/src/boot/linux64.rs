//! The 64-bit Linux boot protocol: `boot_params`, identity-mapped page tables and the GDT.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".

use std::ops::Range;

use super::cmdline::CmdlineError;
use super::place::{Layout, Occupant, PAGE, PlaceError};
use super::setup_header::SetupHeader;
use super::zero_page::{self, ZeroPage};
use super::{Blob, BootError, BootRegs, Prepared, Request};

/// Guest-physical addresses from 0 that are mapped onto themselves at the start.
pub(super) const MAPPED: u64 = 1 << 32;

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

/// Lays out `boot_params`, page tables, GDT, command line and the initrd, within the limits of `header`.
pub(super) fn prepare(
    entry: u64,
    header: SetupHeader,
    layout: &mut Layout,
    request: &Request<'_>,
) -> Result<Prepared, BootError> {
    let (length, limit) = (request.cmdline.len() - 1, header.cmdline_size());
    if u32::try_from(length).map_or(true, |length| length > limit) {
        return Err(CmdlineError::KernelLimit { length, limit }.into());
    }
    let mut lowest =
        |size: usize, align, name| layout.lowest(size as u64, align, name).map_err(BootError::Structures);
    let boot_params = u64::from(lowest(zero_page::SIZE, PAGE, "boot_params")?);
    let page_table = u64::from(lowest(TABLES * TABLE_ENTRIES * 8, PAGE, "the page tables")?);
    let gdt = u64::from(lowest(size_of_val(&GDT), 8, "the GDT")?);
    let cmdline = lowest(request.cmdline.len(), 1, "the command line")?;
    let initrd = request.place_initrd(|size| place_initrd(&header, layout, size))?;
    let zero_page = ZeroPage { header, cmdline, initrd: initrd.as_ref(), platform: request.platform };
    let blobs = vec![
        Blob { address: boot_params, bytes: zero_page.into_bytes() },
        Blob { address: page_table, bytes: page_tables(page_table) },
        Blob { address: gdt, bytes: words(&GDT) },
        Blob { address: u64::from(cmdline), bytes: request.cmdline.clone() },
    ];
    let entry = BootRegs::Linux64 { entry, boot_params, page_table, gdt, gdt_limit: GDT_LIMIT };
    Ok(Prepared { entry, blobs, initrd })
}

/// Below the kernel's limit by preference, and where that has no room above 4 GiB if the kernel allows it.
fn place_initrd(header: &SetupHeader, layout: &mut Layout, size: u64) -> Result<Range<u64>, PlaceError> {
    let limit = u64::from(header.initrd_addr_max()) + 1;
    match layout.highest(size, limit, Occupant::Initrd) {
        Err(no_room) if header.takes_initrd_above_4_gib() => {
            layout.highest(size, u64::MAX, Occupant::Initrd).map_err(|_| no_room)
        }
        placed => placed,
    }
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
