//! vCPUs: the mapped run page, the run loop, and the kick that gets a vCPU out of the guest.
//!
//! * [`Vcpu`]: a KVM vCPU with its own mapping of the run page;
//! * [`VcpuExit`]: what `KVM_RUN` returned with, decoded in place;
//! * [`ExitHandler`]: where exits go; this crate knows no device behind it;
//! * [`KickCell`]: the protocol between the vCPU's thread and those who want its attention;
//! * [`VcpuThread`]: a vCPU on a thread of its own;
//! * [`x86_64`]: registers and CPUID.

mod exit;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
mod kick;
mod run_loop;
mod run_page;
mod signal;
mod sync;
mod thread;
mod vcpu;
pub mod x86_64;

pub use exit::VcpuExit;
pub use kick::{Kick, KickCell, KickTarget, Requests};
pub use run_loop::{ExitHandler, RunVcpu, VcpuEnd, run};
pub use run_page::{ImmediateExit, RunPage};
pub use signal::install_kick_signal;
pub use thread::{StopHandle, ThreadError, VcpuThread};
pub use vcpu::{Vcpu, VcpuError};
