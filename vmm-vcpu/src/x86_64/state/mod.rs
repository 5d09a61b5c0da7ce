//! `VcpuState`: everything that KVM knows of one vCPU, as a plain structure.
//!
//! [`Vcpu::save`](crate::Vcpu::save) makes it, [`Vcpu::restore`](crate::Vcpu::restore) gives it to a vCPU of a new VM,
//! and the guest goes on exactly where it was.
//!
//! # Who does what
//!
//! * **Before `save`** the caller has completed the pending access of the vCPU: after an exit for a port or for MMIO,
//!   part of the instruction is still in KVM and in the run page, which no ioctl reads. The vCPU is entered with
//!   `immediate_exit` set, every exit is served, until `KVM_RUN` fails with `EINTR`. A vCPU that is parked is in this
//!   state.
//! * From the first `save` of a VM until its end nothing may act on its vCPUs: the others are parked, and devices raise
//!   no interrupt. One that arrives after the local APIC was read is not in the state.
//! * **`restore`** is for a vCPU that was made and not configured: its CPUID table comes from the state, and KVM takes
//!   one only before the first `KVM_RUN`. A failed `restore` leaves a vCPU that can only be dropped.
//! * Guest memory is there before `restore`: KVM reads page-directory pointers from it, and writes the clock pages that
//!   MSRs name.
//! * What belongs to the VM is not in here: memory, the interrupt controllers besides the local APIC, and the clock
//!   behind kvmclock (`KVM_SET_CLOCK`). A local APIC fits a VM with the same `KVM_CAP_X2APIC_API`.
//!
//! * **`reset`** is for the vCPU from which the state came, after it has run: [`Vcpu::reset`](crate::Vcpu::reset).
//!
//! # Time
//!
//! The TSC goes on from its saved value, so it does not count while the guest is a state. KVM keeps the TSCs of vCPUs
//! equal that are restored within a second of one another, and were equal. On KVM-PVM every guest has the host's TSC,
//! whatever is written to it. A saved `TSC_DEADLINE` of 0 means that
//! no deadline is armed: its interrupt, if there was one, is in the local APIC, because that is read later. A one-shot timer
//! that has run down fires once more, as KVM restores it.
//!
//! # The form
//!
//! The serde form is written down here, field by field. That of kvm-bindings (its feature `serde`) is one run of
//! bytes a structure, padding included: it changes with the kernel's headers without a word, cannot be read by a
//! person, and lacks `kvm_sregs2`. The XSAVE area, the page of the local APIC and the nested state stay bytes: their
//! layout is the processor's or KVM's own. [`StateVersion`] is the first field.

mod cpuid;
mod error;
mod events;
mod msrs;
mod registers;
mod reset;
mod restore;
mod save;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod xsave;

use std::fmt;

use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs2, kvm_vcpu_events};
use serde::{Deserialize, Serialize};

pub use cpuid::{CpuidDifference, CpuidEntry};
pub use error::StateError;
pub use msrs::Msr;

/// The version of a [`VcpuState`]: another major number is another structure, a newer minor one has fields that are
/// not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateVersion {
    /// Changes when a field changes its meaning.
    pub major: u16,
    /// Changes when a field is added.
    pub minor: u16,
}

impl StateVersion {
    /// What [`Vcpu::save`](crate::Vcpu::save) makes.
    pub const CURRENT: Self = Self { major: 1, minor: 0 };

    /// Whether a state of this version can be restored.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.major == Self::CURRENT.major && (0..=Self::CURRENT.minor).contains(&self.minor)
    }
}

impl fmt::Display for StateVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The state of a vCPU. See the module documentation for the contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// The version of this structure.
    pub version: StateVersion,
    /// The number of the vCPU, which is also its APIC id.
    pub index: u32,
    /// The CPUID table.
    pub cpuid: Vec<CpuidEntry>,
    /// Frequency of the TSC as the guest sees it.
    pub tsc_khz: u32,
    /// The general registers, `rip` and `rflags`.
    #[serde(with = "registers::Regs")]
    pub regs: kvm_regs,
    /// Segment, descriptor table and control registers, EFER and the APIC base.
    #[serde(with = "registers::Sregs")]
    pub sregs: kvm_sregs2,
    /// x87, SSE and everything else that XSAVE saves, in the standard format (Intel SDM, volume 1, section 13.4).
    pub xsave: Vec<u8>,
    /// The extended control registers; empty where the processor has none.
    pub xcrs: Vec<Xcr>,
    /// The debug registers.
    #[serde(with = "registers::DebugRegs")]
    pub debug_regs: kvm_debugregs,
    /// The page of the local APIC.
    pub lapic: Vec<u8>,
    /// The model-specific registers that KVM let be read.
    pub msrs: Vec<Msr>,
    /// Exceptions, interrupts and NMIs on their way into the guest; SMM.
    #[serde(with = "events::Events")]
    pub events: kvm_vcpu_events,
    /// Whether the vCPU runs, is halted, or waits for INIT or SIPI (`KVM_MP_STATE_*`).
    pub mp_state: u32,
    /// The state of nested virtualization, for a guest that has it.
    pub nested: Option<Vec<u8>>,
}

/// An extended control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xcr {
    /// Its number; 0 is the only one there is.
    pub index: u32,
    /// Its value.
    pub value: u64,
}
