//! The serde forms of the kernel's register structures, field by field.
//!
//! Each is a mirror that serde's `remote` derive compares with the structure of kvm-bindings when this is compiled.

use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(remote = "kvm_regs")]
pub(super) struct Regs {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rip: u64,
    rflags: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "kvm_segment")]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    #[serde(rename = "type")]
    type_: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    #[serde(skip)]
    padding: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "kvm_dtable")]
struct Table {
    base: u64,
    limit: u16,
    #[serde(skip)]
    padding: [u16; 3],
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "kvm_sregs2")]
pub(super) struct Sregs {
    #[serde(with = "Segment")]
    cs: kvm_segment,
    #[serde(with = "Segment")]
    ds: kvm_segment,
    #[serde(with = "Segment")]
    es: kvm_segment,
    #[serde(with = "Segment")]
    fs: kvm_segment,
    #[serde(with = "Segment")]
    gs: kvm_segment,
    #[serde(with = "Segment")]
    ss: kvm_segment,
    #[serde(with = "Segment")]
    tr: kvm_segment,
    #[serde(with = "Segment")]
    ldt: kvm_segment,
    #[serde(with = "Table")]
    gdt: kvm_dtable,
    #[serde(with = "Table")]
    idt: kvm_dtable,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    flags: u64,
    pdptrs: [u64; 4],
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "kvm_debugregs")]
pub(super) struct DebugRegs {
    db: [u64; 4],
    dr6: u64,
    dr7: u64,
    flags: u64,
    #[serde(skip)]
    reserved: [u64; 9],
}

/// What `KVM_GET_SREGS` gives, in the newer form. The interrupt on its way that it has too is in the events.
pub(super) fn from_sregs(sregs: &kvm_sregs) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: sregs.cs,
        ds: sregs.ds,
        es: sregs.es,
        fs: sregs.fs,
        gs: sregs.gs,
        ss: sregs.ss,
        tr: sregs.tr,
        ldt: sregs.ldt,
        gdt: sregs.gdt,
        idt: sregs.idt,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        flags: 0,
        pdptrs: [0; 4],
    }
}

/// What `KVM_SET_SREGS` takes. KVM reads the page-directory pointers from guest memory then.
pub(super) fn to_sregs(sregs: &kvm_sregs2) -> kvm_sregs {
    kvm_sregs {
        cs: sregs.cs,
        ds: sregs.ds,
        es: sregs.es,
        fs: sregs.fs,
        gs: sregs.gs,
        ss: sregs.ss,
        tr: sregs.tr,
        ldt: sregs.ldt,
        gdt: sregs.gdt,
        idt: sregs.idt,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_segment_registers_carry_the_same() {
        let segment = |selector| kvm_segment { selector, base: 0x1000, ..Default::default() };
        let sregs = kvm_sregs2 {
            cs: segment(1),
            ds: segment(2),
            es: segment(3),
            fs: segment(4),
            gs: segment(5),
            ss: segment(6),
            tr: segment(7),
            ldt: segment(8),
            gdt: kvm_dtable { base: 9, limit: 10, ..Default::default() },
            idt: kvm_dtable { base: 11, limit: 12, ..Default::default() },
            cr0: 13,
            cr2: 14,
            cr3: 15,
            cr4: 16,
            cr8: 17,
            efer: 18,
            apic_base: 19,
            flags: 0,
            pdptrs: [0; 4],
        };
        assert_eq!(from_sregs(&to_sregs(&sregs)), sregs);
    }
}
