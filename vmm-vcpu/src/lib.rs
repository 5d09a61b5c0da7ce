//! vCPUs: the mapped run page, the run loop, and the kick that gets a vCPU out of the guest.
//!
//! * [`Vcpu`]: a KVM vCPU with its own mapping of the run page;
//! * [`VcpuExit`]: what `KVM_RUN` returned with, decoded in place;
//! * [`ExitHandler`]: where exits go; this crate knows no device behind it;
//! * [`KickCell`]: the protocol between the vCPU's thread and those who want its attention;
//! * [`Mechanism`]: the two ways in which a kick reaches `KVM_RUN`;
//! * [`VcpuThread`]: a vCPU on a thread of its own;
//! * [`Placement`]: on which host CPUs that thread runs, and how it is scheduled;
//! * [`Vcpus`]: all vCPUs of a machine, paused and resumed as one;
//! * [`Counters`]: what the run loop and the kickers count;
//! * [`x86_64`]: registers, CPUID, and the saved state.

pub mod affinity;
pub mod calls;
mod counters;
mod dirty_ring;
mod exit;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
mod ioctl;
mod kick;
mod mapping;
mod mechanism;
mod placement;
mod run_loop;
mod run_page;
mod scheduler;
mod signal;
mod sync;
mod tasks;
mod thread;
mod vcpu;
mod vcpus;
pub mod x86_64;

pub use counters::Counters;
pub use exit::VcpuExit;
pub use kick::{Kick, KickCell, KickCounts, KickTarget, Parking, Requests};
pub use mechanism::{Mechanism, ThreadTarget};
pub use placement::{Placement, PlacementError};
pub use run_loop::{Ended, ExitHandler, RunVcpu, Shared, VcpuEnd, coarse_now, run};
pub use run_page::{ImmediateExit, RunPage};
pub use scheduler::Scheduler;
pub use signal::install_kick_signal;
pub use thread::{StopHandle, ThreadError, ThreadOptions, VcpuGone, VcpuThread};
pub use vcpu::{Vcpu, VcpuError};
pub use vcpus::{PauseError, RunState, Vcpus};
