//! Facts about the host processor.

use std::arch::x86_64::{__cpuid, __get_cpuid_max};

/// What a processor has for virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Intel's.
    Vmx,
    /// AMD's.
    Svm,
}

impl Extension {
    /// The kernel module that uses it.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Vmx => "kvm_intel",
            Self::Svm => "kvm_amd",
        }
    }

    /// Its flag in `/proc/cpuinfo`, which is also its name for scripts.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
        }
    }
}

/// What the host processor says it has, whatever firmware and kernel have made of it. Without it KVM can exist only as
/// KVM-PVM or not at all.
#[must_use]
pub fn extension() -> Option<Extension> {
    const VMX: u32 = 1 << 5; // leaf 1 ecx
    const SVM: u32 = 1 << 2; // leaf 0x80000001 ecx
    if ecx(1) & VMX != 0 {
        Some(Extension::Vmx)
    } else if ecx(0x8000_0001) & SVM != 0 {
        Some(Extension::Svm)
    } else {
        None
    }
}

/// Whether the host processor has VMX or SVM.
#[must_use]
pub fn has_hardware_virtualization() -> bool {
    extension().is_some()
}

/// Whether the host is itself a virtual machine that says so.
#[must_use]
pub fn is_virtual() -> bool {
    const HYPERVISOR: u32 = 1 << 31; // leaf 1 ecx
    ecx(1) & HYPERVISOR != 0
}

fn ecx(leaf: u32) -> u32 {
    let (max, _) = __get_cpuid_max(leaf & 0x8000_0000);
    if max >= leaf { __cpuid(leaf).ecx } else { 0 }
}
