//! `BootRegs`: the register state with which a boot protocol enters the guest.

use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

/// How the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootRegs {
    /// 32-bit protected mode without paging, flat segments: the PVH entry (Xen `docs/misc/pvh.pandoc`).
    Pvh {
        /// Entry point.
        entry: u32,
        /// Guest-physical address of `hvm_start_info`, passed in `ebx`.
        start_info: u32,
    },
    /// The same mode with the Multiboot magic number in `eax`: the Multiboot 1 entry (Multiboot Specification 0.6.96,
    /// section 3.2).
    Multiboot {
        /// Entry point.
        entry: u32,
        /// Guest-physical address of the Multiboot information, passed in `ebx`.
        info: u32,
    },
    /// 64-bit mode with identity paging: the 64-bit Linux boot protocol (`Documentation/arch/x86/boot.rst`).
    Linux64 {
        /// Entry point.
        entry: u64,
        /// Guest-physical address of `boot_params`, passed in `rsi`.
        boot_params: u64,
        /// Guest-physical address of the top-level page table.
        page_table: u64,
        /// Guest-physical address of a GDT with a 64-bit code segment at 0x10 and a data segment at 0x18.
        gdt: u64,
        /// Its limit.
        gdt_limit: u16,
    },
}

/// Tells a kernel that a Multiboot loader has started it.
const MULTIBOOT_MAGIC: u64 = 0x2bad_b002;

/// Bit 1 of `rflags` is always set.
const RFLAGS: u64 = 1 << 1;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const TYPE_CODE: u8 = 0xb; // execute, read, accessed
const TYPE_DATA: u8 = 0x3; // read, write, accessed
const TYPE_TSS: u8 = 0xb; // busy TSS

/// A flat 4 GiB segment.
fn flat(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        db: u8::from(!long),
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

impl BootRegs {
    /// The general registers.
    pub(crate) fn regs(&self) -> kvm_regs {
        match *self {
            Self::Pvh { entry, start_info } => kvm_regs {
                rip: u64::from(entry),
                rbx: u64::from(start_info),
                rflags: RFLAGS,
                ..Default::default()
            },
            Self::Multiboot { entry, info } => kvm_regs {
                rip: u64::from(entry),
                rax: MULTIBOOT_MAGIC,
                rbx: u64::from(info),
                rflags: RFLAGS,
                ..Default::default()
            },
            Self::Linux64 { entry, boot_params, .. } => {
                kvm_regs { rip: entry, rsi: boot_params, rflags: RFLAGS, ..Default::default() }
            }
        }
    }

    /// Changes the segment and control registers of a vCPU that was just reset.
    pub(crate) fn apply_to(&self, sregs: &mut kvm_sregs) {
        // A null TSS, as PVH asks for: base 0, limit 0x67.
        sregs.tr = kvm_segment { limit: 0x67, type_: TYPE_TSS, present: 1, ..Default::default() };
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        match *self {
            Self::Pvh { .. } | Self::Multiboot { .. } => {
                sregs.cs = flat(0x10, TYPE_CODE, false);
                set_data_segments(sregs, flat(0x18, TYPE_DATA, false));
                sregs.gdt.base = 0;
                sregs.gdt.limit = 0;
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr4 = 0;
                sregs.efer = 0;
            }
            Self::Linux64 { page_table, gdt, gdt_limit, .. } => {
                sregs.cs = flat(0x10, TYPE_CODE, true);
                set_data_segments(sregs, flat(0x18, TYPE_DATA, false));
                sregs.gdt.base = gdt;
                sregs.gdt.limit = gdt_limit;
                sregs.cr3 = page_table;
                sregs.cr4 = CR4_PAE;
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.efer = EFER_LME | EFER_LMA;
            }
        }
    }
}

fn set_data_segments(sregs: &mut kvm_sregs, segment: kvm_segment) {
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = segment;
    }
}

/// The MSRs that firmware would have set: fast string operations on (`IA32_MISC_ENABLE`, beside the bits that KVM sets at
/// reset), and write-back as the default memory type (`IA32_MTRR_DEF_TYPE`), because Linux turns MTRRs that are off into
/// uncached memory. A vCPU with `mwait` has its monitor on.
pub(crate) fn boot_msrs(mwait: bool) -> [kvm_msr_entry; 2] {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1 << 0;
    const BTS_UNAVAILABLE: u64 = 1 << 11;
    const PEBS_UNAVAILABLE: u64 = 1 << 12;
    const MONITOR_ENABLE: u64 = 1 << 18;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE: u64 = 1 << 11;
    const WRITE_BACK: u64 = 6;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let monitor = if mwait { MONITOR_ENABLE } else { 0 };
    [
        entry(IA32_MISC_ENABLE, FAST_STRINGS | BTS_UNAVAILABLE | PEBS_UNAVAILABLE | monitor),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_starts_in_flat_protected_mode_with_start_info_in_ebx() {
        let boot = BootRegs::Pvh { entry: 0x20_0000, start_info: 0x6000 };
        let mut sregs = kvm_sregs { efer: 1, cr4: 1, ..Default::default() };
        boot.apply_to(&mut sregs);
        assert_eq!((boot.regs().rip, boot.regs().rbx, boot.regs().rflags), (0x20_0000, 0x6000, 2));
        assert_eq!((sregs.cr0 & (CR0_PE | CR0_PG), sregs.cr4, sregs.efer), (CR0_PE, 0, 0));
        assert_eq!((sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l), (0, u32::MAX, 1, 0));
        assert_eq!((sregs.tr.base, sregs.tr.limit), (0, 0x67));
    }

    #[test]
    fn multiboot_starts_as_pvh_does_with_its_magic_number_in_eax() {
        let boot = BootRegs::Multiboot { entry: 0x40_00bc, info: 0x6000 };
        let (mut sregs, mut pvh) = (kvm_sregs::default(), kvm_sregs::default());
        boot.apply_to(&mut sregs);
        BootRegs::Pvh { entry: 0, start_info: 0 }.apply_to(&mut pvh);
        assert_eq!(sregs, pvh);
        let regs = boot.regs();
        assert_eq!((regs.rip, regs.rax, regs.rbx, regs.rflags), (0x40_00bc, 0x2bad_b002, 0x6000, 2));
    }

    #[test]
    fn linux64_starts_in_long_mode_with_boot_params_in_rsi() {
        let boot = BootRegs::Linux64 {
            entry: 0x100_0000,
            boot_params: 0x7000,
            page_table: 0x9000,
            gdt: 0x8000,
            gdt_limit: 31,
        };
        let mut sregs = kvm_sregs::default();
        boot.apply_to(&mut sregs);
        assert_eq!((boot.regs().rip, boot.regs().rsi), (0x100_0000, 0x7000));
        assert_eq!((sregs.cr3, sregs.gdt.base, sregs.gdt.limit), (0x9000, 0x8000, 31));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.ds.selector), (0x10, 1, 0x18));
        assert_eq!(sregs.efer & (EFER_LMA | EFER_LME), EFER_LMA | EFER_LME);
    }
}
