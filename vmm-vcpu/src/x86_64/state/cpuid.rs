//! The CPUID table of a saved vCPU, and whether a host can give it.
//!
//! KVM takes any table and runs the guest whatever is in it. So this compares the leaves that tell a guest what it may
//! execute with those of the host. Leaves by the Intel SDM, volume 2A, "CPUID", the AMD APM, volume
//! 3, appendix E, and the kernel's `Documentation/virt/kvm/x86/cpuid.rst`.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// One entry of a CPUID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf.
    pub function: u32,
    /// The subleaf.
    pub index: u32,
    /// `KVM_CPUID_FLAG_*`.
    pub flags: u32,
    /// What the guest finds in this register.
    pub eax: u32,
    /// What the guest finds in this register.
    pub ebx: u32,
    /// What the guest finds in this register.
    pub ecx: u32,
    /// What the guest finds in this register.
    pub edx: u32,
}

impl From<kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = entry;
        Self { function, index, flags, eax, ebx, ecx, edx }
    }
}

impl From<CpuidEntry> for kvm_cpuid_entry2 {
    fn from(entry: CpuidEntry) -> Self {
        let CpuidEntry { function, index, flags, eax, ebx, ecx, edx } = entry;
        Self { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }
}

impl CpuidEntry {
    fn register(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// A register of a saved CPUID table that the host cannot give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidDifference {
    /// The leaf.
    pub function: u32,
    /// The subleaf.
    pub index: u32,
    /// The register: `eax`, `ebx`, `ecx` or `edx`.
    pub register: &'static str,
    /// What the guest knows, without what does not matter.
    pub saved: u32,
    /// What the host has of that.
    pub host: u32,
}

impl fmt::Display for CpuidDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, index, register, saved, host } = self;
        write!(f, "leaf {function:#x}, subleaf {index}, {register}: the guest knows {saved:#x}, ")?;
        write!(f, "the host has {host:#x}")
    }
}

/// How a host's register can differ from the saved one.
#[derive(Clone, Copy)]
enum Rule {
    /// Feature bits: the host has all but these, which do not depend on the host.
    Features { besides: u32 },
    /// The host has the same.
    Same,
    /// A number in these bits: the host's is as large.
    AtMost { mask: u32 },
}

/// Bits of leaf 1 that do not come from the host: mirrors of the guest's own CR4 (OSXSAVE) and MISC_ENABLE (MWAIT, which
/// KVM executes as a NOP), and what KVM emulates on every host (x2APIC, TSC deadline) or the monitor says (hypervisor;
/// HTT in edx).
const LEAF_1_ECX: u32 = 1 << 3 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31;
const LEAF_1_EDX: u32 = 1 << 28;
/// OSPKE, the mirror of CR4.PKE.
const LEAF_7_ECX: u32 = 1 << 4;

const FEATURES: Rule = Rule::Features { besides: 0 };

/// What of a table depends on the host: leaf, subleaf, register.
const RULES: [(u32, u32, Register, Rule); 26] = [
    // The vendor: MSRs, and instructions such as SYSCALL, differ.
    (0, 0, Register::Ebx, Rule::Same),
    (0, 0, Register::Ecx, Rule::Same),
    (0, 0, Register::Edx, Rule::Same),
    (1, 0, Register::Ecx, Rule::Features { besides: LEAF_1_ECX }),
    (1, 0, Register::Edx, Rule::Features { besides: LEAF_1_EDX }),
    (7, 0, Register::Ebx, FEATURES),
    (7, 0, Register::Ecx, Rule::Features { besides: LEAF_7_ECX }),
    (7, 0, Register::Edx, FEATURES),
    (7, 1, Register::Eax, FEATURES),
    (7, 1, Register::Ebx, FEATURES),
    (7, 1, Register::Ecx, FEATURES),
    (7, 1, Register::Edx, FEATURES),
    (7, 2, Register::Edx, FEATURES),
    // State components of XCR0 and IA32_XSS, and the forms of XSAVE.
    (0xd, 0, Register::Eax, FEATURES),
    (0xd, 0, Register::Edx, FEATURES),
    (0xd, 1, Register::Eax, FEATURES),
    (0xd, 1, Register::Ecx, FEATURES),
    (0xd, 1, Register::Edx, FEATURES),
    // Paravirtual features of KVM.
    (0x4000_0001, 0, Register::Eax, FEATURES),
    (0x8000_0001, 0, Register::Ecx, FEATURES),
    (0x8000_0001, 0, Register::Edx, FEATURES),
    (0x8000_0007, 0, Register::Edx, FEATURES),
    // Bits of a physical address: beyond those of the host, page tables have reserved bits set.
    (0x8000_0008, 0, Register::Eax, Rule::AtMost { mask: 0xff }),
    (0x8000_0008, 0, Register::Ebx, FEATURES),
    (0x8000_000a, 0, Register::Edx, FEATURES),
    (0x8000_0021, 0, Register::Eax, FEATURES),
];

/// The subleaves of leaf 0xD that describe one state component each: its place and size in the XSAVE area.
const XSAVE_LEAF: u32 = 0xd;
const XSAVE_COMPONENTS: std::ops::Range<u32> = 2..64;

/// What of the table `saved` a host cannot give that supports `host`.
pub(super) fn differences(saved: &[CpuidEntry], host: &[CpuidEntry]) -> Vec<CpuidDifference> {
    let components = XSAVE_COMPONENTS.flat_map(|index| {
        [Register::Eax, Register::Ebx].map(|register| (XSAVE_LEAF, index, register, Rule::Same))
    });
    RULES.into_iter().chain(components).filter_map(|rule| difference(rule, saved, host)).collect()
}

fn difference(
    (function, index, register, rule): (u32, u32, Register, Rule),
    saved: &[CpuidEntry],
    host: &[CpuidEntry],
) -> Option<CpuidDifference> {
    let find = |table: &[CpuidEntry]| {
        let entry = table.iter().find(|entry| entry.function == function && entry.index == index);
        entry.map(|entry| entry.register(register))
    };
    // What the guest has not been told of does not matter.
    let saved = find(saved)?;
    let host = find(host).unwrap_or(0);
    let (saved, host, is_given) = match rule {
        Rule::Features { besides } => {
            let saved = saved & !besides;
            (saved, saved & host, saved & !host == 0)
        }
        Rule::Same => (saved, host, saved == host),
        Rule::AtMost { mask } => (saved & mask, host & mask, saved & mask <= host & mask),
    };
    (!is_given).then_some(CpuidDifference { function, index, register: register.name(), saved, host })
}

/// Whether a guest with this table can itself be a host: VMX or SVM.
pub(super) fn has_virtualization(table: &[CpuidEntry]) -> bool {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    table.iter().any(|entry| match entry.function {
        1 => entry.ecx & VMX != 0,
        0x8000_0001 => entry.ecx & SVM != 0,
        _ => false,
    })
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> CpuidEntry {
        CpuidEntry { function, index, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 }
    }

    #[test]
    fn a_host_that_has_more_gives_everything() {
        let saved = [CpuidEntry { ebx: 0x21, ..entry(7, 0) }];
        let host = [CpuidEntry { ebx: 0xff, ..entry(7, 0) }, CpuidEntry { eax: 1, ..entry(7, 1) }];
        assert_eq!(differences(&saved, &host), []);
    }

    #[test]
    fn fault_e2_a_feature_that_is_missing_is_named() {
        let saved = [CpuidEntry { ebx: 0x21, ..entry(7, 0) }];
        let host = [CpuidEntry { ebx: 0x20, ..entry(7, 0) }];
        let found = differences(&saved, &host);
        let text = "leaf 0x7, subleaf 0, ebx: the guest knows 0x21, the host has 0x20";
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
        assert_eq!(differences(&saved, &[])[0].host, 0);
    }

    #[test]
    fn fault_e2_another_vendor_is_refused() {
        let vendor = |ebx| CpuidEntry { ebx, ..entry(0, 0) };
        let found = differences(&[vendor(0x756e_6547)], &[vendor(0x6874_7541)]);
        assert_eq!((found.len(), found[0].register), (1, "ebx"));
    }

    #[test]
    fn what_the_guest_or_the_monitor_decides_is_not_compared() {
        let saved = [
            CpuidEntry { ecx: LEAF_1_ECX, edx: LEAF_1_EDX, ebx: 7 << 24, ..entry(1, 0) },
            CpuidEntry { ecx: LEAF_7_ECX, ..entry(7, 0) },
            CpuidEntry { edx: 5, ..entry(0xb, 0) },
        ];
        assert_eq!(differences(&saved, &[]), []);
    }

    #[test]
    fn more_address_bits_than_the_host_has_are_refused() {
        let bits = |eax| [CpuidEntry { eax, ..entry(0x8000_0008, 0) }];
        assert_eq!(differences(&bits(0x3027), &bits(0x302e)), []);
        let found = differences(&bits(0x302e), &bits(0x3027));
        assert_eq!((found[0].saved, found[0].host), (0x2e, 0x27));
    }

    #[test]
    fn a_state_component_at_another_place_is_refused() {
        let component = |ebx| [CpuidEntry { eax: 8, ebx, ..entry(0xd, 9) }];
        assert_eq!(differences(&component(2688), &component(2688)), []);
        assert_eq!(differences(&component(2688), &component(832)).len(), 1);
    }

    #[test]
    fn an_entry_is_the_same_after_it_was_in_the_kernels_form() {
        let entry = CpuidEntry { function: 1, index: 2, flags: 3, eax: 4, ebx: 5, ecx: 6, edx: 7 };
        assert_eq!(CpuidEntry::from(kvm_cpuid_entry2::from(entry)), entry);
    }

    #[test]
    fn vmx_and_svm_are_virtualization() {
        assert!(has_virtualization(&[CpuidEntry { ecx: 1 << 5, ..entry(1, 0) }]));
        assert!(has_virtualization(&[CpuidEntry { ecx: 1 << 2, ..entry(0x8000_0001, 0) }]));
        assert!(!has_virtualization(&[CpuidEntry { ecx: 1 << 2, ..entry(1, 0) }]));
    }
}
