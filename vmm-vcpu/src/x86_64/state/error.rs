//! `StateError`: why the state of a vCPU cannot be saved or restored.

use std::io;

use vmm_core::IoctlError;

use super::{CpuidDifference, StateVersion};

/// Why the state of a vCPU cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state was made by a program with another structure of it.
    #[error("a vCPU state of version {found} cannot be restored: this program knows {supported}")]
    Version {
        /// The version of the state.
        found: StateVersion,
        /// The version that this program makes.
        supported: StateVersion,
    },
    /// The state is that of another vCPU.
    #[error("the state of vCPU {saved} cannot be restored into vCPU {index}")]
    Index {
        /// The vCPU.
        index: u32,
        /// The vCPU of the state.
        saved: u32,
    },
    /// The guest knows features that this host's KVM does not have.
    #[error("this host's KVM cannot give vCPU {index} its CPUID table: {}", list(differences))]
    Cpuid {
        /// The vCPU.
        index: u32,
        /// Each register that cannot be as it was.
        differences: Vec<CpuidDifference>,
    },
    /// Part of the state has a length that it cannot have.
    #[error("{part} of the state of vCPU {index} has {found} entries or bytes, {expected} expected")]
    Length {
        /// The vCPU.
        index: u32,
        /// The field of the state.
        part: &'static str,
        /// Its length.
        found: usize,
        /// The length that it can have.
        expected: usize,
    },
    /// The host cannot run the guest's TSC at the frequency that the guest has measured.
    #[error("the TSC of vCPU {index} ran at {saved} kHz, and this host, at {host} kHz, cannot scale it")]
    TscKhz {
        /// The vCPU.
        index: u32,
        /// The frequency that the guest knows.
        saved: u32,
        /// The frequency here.
        host: u32,
        /// The kernel's answer.
        #[source]
        source: IoctlError,
    },
    /// The host's KVM does not take the value of an MSR.
    #[error("vCPU {index}: {value:#x} is refused for MSR {msr:#x}")]
    Msr {
        /// The vCPU.
        index: u32,
        /// The MSR.
        msr: u32,
        /// The saved value.
        value: u64,
    },
    /// The guest uses nested virtualization, and this host's KVM cannot restore it.
    #[error(
        "vCPU {index} has nested virtualization, which this host's KVM cannot restore: load kvm_intel or kvm_amd with nested=1"
    )]
    Nested {
        /// The vCPU.
        index: u32,
    },
    /// What the vCPU was doing when it was stopped does not come to an end.
    #[error("the last access of vCPU {index} cannot be completed")]
    Pending {
        /// The vCPU.
        index: u32,
        /// What `KVM_RUN` answers.
        #[source]
        source: io::Error,
    },
    /// An ioctl failed.
    #[error("vCPU {index}")]
    Ioctl {
        /// The vCPU.
        index: u32,
        /// The ioctl.
        #[source]
        source: IoctlError,
    },
}

fn list(differences: &[CpuidDifference]) -> String {
    let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
