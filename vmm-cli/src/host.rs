//! Facts about the host processor.

use std::arch::x86_64::{__cpuid, __get_cpuid_max};

/// Whether the host processor has VMX or SVM. Without them KVM can exist only as KVM-PVM or not at all.
#[must_use]
pub fn has_hardware_virtualization() -> bool {
    const VMX: u32 = 1 << 5; // leaf 1 ecx
    const SVM: u32 = 1 << 2; // leaf 0x80000001 ecx
    let leaf = |leaf: u32| {
        let (max, _) = __get_cpuid_max(leaf & 0x8000_0000);
        if max >= leaf { __cpuid(leaf).ecx } else { 0 }
    };
    leaf(1) & VMX != 0 || leaf(0x8000_0001) & SVM != 0
}
