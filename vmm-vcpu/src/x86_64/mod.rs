//! The x86-64 side of a vCPU: CPUID, boot registers, MSRs and the local APIC.

mod boot;
mod cpuid;

pub use boot::BootRegs;
pub(crate) use boot::{boot_msrs, set_local_interrupts};
pub use cpuid::{CpuidError, CpuidTemplate};
