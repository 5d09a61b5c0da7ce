//! The zero page: `boot_params`, as bytes.
//!
//! Linux `Documentation/arch/x86/zero-page.rst`. Written field by field: linux-loader gives the structure no safe view
//! as bytes.

use std::mem::offset_of;
use std::ops::Range;

use linux_loader::bootparam::{boot_e820_entry, boot_params};

use super::Platform;
use super::setup_header::{self, SetupHeader};

/// Its size in bytes.
pub(super) const SIZE: usize = size_of::<boot_params>();

/// What the kernel is told.
#[derive(Debug)]
pub(super) struct ZeroPage<'a> {
    pub header: SetupHeader,
    /// Guest-physical address.
    pub cmdline: u32,
    pub initrd: Option<&'a Range<u64>>,
    /// Its memory map has at most 128 entries.
    pub platform: &'a Platform<'a>,
}

impl ZeroPage<'_> {
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let mut page = vec![0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        self.header.set_cmdline(self.cmdline);
        if let Some(Range { start, end }) = self.initrd {
            let (address, address_high) = halves(*start);
            let (size, size_high) = halves(end - start);
            self.header.set_initrd(address, size);
            put(offset_of!(boot_params, ext_ramdisk_image), &address_high.to_le_bytes());
            put(offset_of!(boot_params, ext_ramdisk_size), &size_high.to_le_bytes());
        }
        put(setup_header::START, self.header.as_bytes());
        put(offset_of!(boot_params, acpi_rsdp_addr), &self.platform.rsdp.unwrap_or(0).to_le_bytes());
        // Layout::new has bounded the number.
        #[expect(clippy::cast_possible_truncation, reason = "at most 128 entries")]
        put(offset_of!(boot_params, e820_entries), &[self.platform.map.len() as u8]);
        for (index, entry) in self.platform.map.iter().enumerate() {
            let at = offset_of!(boot_params, e820_table) + index * size_of::<boot_e820_entry>();
            put(at + offset_of!(boot_e820_entry, addr), &entry.start.to_le_bytes());
            put(at + offset_of!(boot_e820_entry, size), &entry.size.to_le_bytes());
            put(at + offset_of!(boot_e820_entry, r#type), &entry.kind.number().to_le_bytes());
        }
        page
    }
}

/// The lower and the upper 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "this takes the halves apart")]
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
