//! The setup header of the Linux boot protocol: a bzImage brings one, for a vmlinux one is made.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header".

use std::mem::offset_of;

use linux_loader::bootparam::{
    LOADED_HIGH, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, boot_params, setup_header,
};

/// Where the header starts, in a bzImage as in `boot_params`.
pub(super) const START: usize = offset_of!(boot_params, hdr);
/// Address after the last byte that `boot_params` has for it.
pub(super) const END: usize = offset_of!(boot_params, edd_mbr_sig_buffer);
/// `header` is followed by what the byte at 0x201 counts: the two-byte jump over the rest of the header.
const AFTER_JUMP: usize = START + offset_of!(setup_header, header);

/// Protocol 2.12, the first that describes a 64-bit entry.
pub(super) const VERSION_64: u16 = 0x020c;
/// Protocol 2.14, the first with `acpi_rsdp_addr`; what `boot_params` has for a vmlinux agrees with it.
const VERSION_MADE: u16 = 0x020e;
pub(super) const BOOT_FLAG: u16 = 0xaa55;
/// A loader without a number of its own; a kernel ignores the initrd of loader 0.
const TYPE_OF_LOADER: u8 = 0xff;
/// `initrd_addr_max` of a kernel that does not name one.
const INITRD_ADDR_MAX: u32 = 0x37ff_ffff;
/// `COMMAND_LINE_SIZE` of x86 less the NUL.
const CMDLINE_SIZE: u32 = 2047;

/// The bytes from [`START`] to [`END`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetupHeader([u8; END - START]);

impl SetupHeader {
    /// For a vmlinux, which has left its own header in the bzImage around it.
    pub(super) fn of_vmlinux() -> Self {
        let mut header = Self([0; END - START]);
        header.put(offset_of!(setup_header, boot_flag), BOOT_FLAG.to_le_bytes());
        header.put(offset_of!(setup_header, header), *b"HdrS");
        header.put(offset_of!(setup_header, version), VERSION_MADE.to_le_bytes());
        header.put(offset_of!(setup_header, initrd_addr_max), INITRD_ADDR_MAX.to_le_bytes());
        header.put(offset_of!(setup_header, cmdline_size), CMDLINE_SIZE.to_le_bytes());
        header
    }

    /// Takes the bytes of a bzImage from [`START`] on.
    pub(super) fn of_bzimage(bytes: [u8; END - START]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where the header says that it ends.
    pub(super) fn end(&self) -> usize {
        let [_, length] = self.get(offset_of!(setup_header, jump));
        AFTER_JUMP + usize::from(length)
    }

    /// Clears what lies after the header's own end: code of the bzImage.
    pub(super) fn cut(&mut self) {
        let end = self.end();
        self.0[(end - START).min(END - START)..].fill(0);
    }

    /// Sectors of 512 bytes before the kernel proper, less the first; 0 stands for 4.
    pub(super) fn setup_sects(&self) -> u8 {
        let [sectors] = self.get(offset_of!(setup_header, setup_sects));
        if sectors == 0 { 4 } else { sectors }
    }

    /// Size of the kernel proper in units of 16 bytes.
    pub(super) fn syssize(&self) -> u32 {
        u32::from_le_bytes(self.get(offset_of!(setup_header, syssize)))
    }

    pub(super) fn boot_flag(&self) -> u16 {
        u16::from_le_bytes(self.get(offset_of!(setup_header, boot_flag)))
    }

    /// Major number in the upper byte, minor in the lower.
    pub(super) fn version(&self) -> u16 {
        u16::from_le_bytes(self.get(offset_of!(setup_header, version)))
    }

    fn loadflags(&self) -> u8 {
        let [flags] = self.get(offset_of!(setup_header, loadflags));
        flags
    }

    /// Whether the kernel proper is loaded at 1 MiB or above; a zImage is not.
    pub(super) fn is_loaded_high(&self) -> bool {
        self.loadflags() & LOADED_HIGH != 0
    }

    /// Protocol 2.12; 0 before it.
    pub(super) fn xloadflags(&self) -> u16 {
        match self.version() {
            ..VERSION_64 => 0,
            _ => u16::from_le_bytes(self.get(offset_of!(setup_header, xloadflags))),
        }
    }

    /// Whether 64-bit code can be entered 0x200 bytes after the load address.
    pub(super) fn has_64_bit_entry(&self) -> bool {
        self.xloadflags() & XLF_KERNEL_64 != 0
    }

    /// Whether the initrd may be above 4 GiB.
    pub(super) fn takes_initrd_above_4_gib(&self) -> bool {
        self.xloadflags() & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Highest address of a byte of the initrd.
    pub(super) fn initrd_addr_max(&self) -> u32 {
        u32::from_le_bytes(self.get(offset_of!(setup_header, initrd_addr_max)))
    }

    pub(super) fn kernel_alignment(&self) -> u32 {
        u32::from_le_bytes(self.get(offset_of!(setup_header, kernel_alignment)))
    }

    pub(super) fn is_relocatable(&self) -> bool {
        self.get(offset_of!(setup_header, relocatable_kernel)) != [0]
    }

    /// The exponent of the least alignment that the kernel can be started with; 0 if it names none.
    pub(super) fn min_alignment(&self) -> u8 {
        let [exponent] = self.get(offset_of!(setup_header, min_alignment));
        exponent
    }

    /// Longest command line, without its NUL.
    pub(super) fn cmdline_size(&self) -> u32 {
        u32::from_le_bytes(self.get(offset_of!(setup_header, cmdline_size)))
    }

    pub(super) fn pref_address(&self) -> u64 {
        u64::from_le_bytes(self.get(offset_of!(setup_header, pref_address)))
    }

    /// Memory from the start of the kernel that it uses before it looks at the memory map.
    pub(super) fn init_size(&self) -> u32 {
        u32::from_le_bytes(self.get(offset_of!(setup_header, init_size)))
    }

    /// Says where the kernel proper is.
    pub(super) fn set_load_address(&mut self, address: u32) {
        self.put(offset_of!(setup_header, code32_start), address.to_le_bytes());
    }

    /// Says to what alignment it was placed.
    pub(super) fn set_kernel_alignment(&mut self, alignment: u32) {
        self.put(offset_of!(setup_header, kernel_alignment), alignment.to_le_bytes());
    }

    /// Says who loads, and where the command line is.
    pub(super) fn set_cmdline(&mut self, address: u32) {
        self.put(offset_of!(setup_header, type_of_loader), [TYPE_OF_LOADER]);
        self.put(offset_of!(setup_header, cmd_line_ptr), address.to_le_bytes());
    }

    /// Sets the lower halves of address and size of the initrd.
    pub(super) fn set_initrd(&mut self, address: u32, size: u32) {
        self.put(offset_of!(setup_header, ramdisk_image), address.to_le_bytes());
        self.put(offset_of!(setup_header, ramdisk_size), size.to_le_bytes());
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|index| self.0[at + index])
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
}
