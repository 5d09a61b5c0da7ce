//! Statistics: what the kernel counts about a VM and about each vCPU (`KVM_GET_STATS_FD`).
//!
//! The kernel describes each of its statistics in the file that it gives out, so that their number, names and units may
//! differ from kernel to kernel. The descriptors are read once, when the file is opened; a sample is one read.
//! (`Documentation/virt/kvm/api.rst`, 4.133.)

#[cfg(any(test, feature = "test-util"))]
mod blob;
mod descriptor;
mod file;
mod sample;
mod schema;

#[cfg(any(test, feature = "test-util"))]
pub use blob::{Blob, Described};
pub use descriptor::{Base, Kind, Statistic, Unit};
pub use file::{StatsError, StatsFd};
pub use sample::Sample;
pub use schema::{Schema, SchemaError};
