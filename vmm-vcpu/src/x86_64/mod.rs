//! The x86-64 side of a vCPU: CPUID, boot registers and MSRs.

mod boot;
mod cpuid;

pub use boot::BootRegs;
pub(crate) use boot::boot_msrs;
pub(crate) use cpuid::has_mwait;
pub use cpuid::{CpuidError, CpuidTemplate};
