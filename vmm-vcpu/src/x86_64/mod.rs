//! The x86-64 side of a vCPU: CPUID, boot registers and MSRs, the saved state.

mod boot;
mod cpuid;
mod state;

pub use boot::BootRegs;
pub(crate) use boot::boot_msrs;
pub(crate) use cpuid::has_mwait;
pub use cpuid::{CpuidError, CpuidTemplate};
pub use state::{CpuidDifference, CpuidEntry, Msr, StateError, StateVersion, VcpuState, Xcr};
