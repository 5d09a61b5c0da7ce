//! The floor every other crate stands on: `/dev/kvm`, the VM descriptor, and what is shared between threads.
//!
//! * [`Kvm`] and [`Capabilities`]: what the host offers, read once;
//! * [`Vm`]: the VM descriptor; its ioctl families are the small traits of [`seam`], which `FakeVm` (feature
//!   `test-util`) implements too, so that everything above can be tested without KVM;
//! * [`DirtyMechanism`]: how KVM says what a guest has written to, and the rings in which it may;
//! * [`LightFence`]: half of a fence between many and one;
//! * [`irq`]: who owns which GSI, and the triggers that raise them;
//! * [`stats`]: what the kernel counts about a VM and its vCPUs;
//! * [`Deferred`]: a device access that ends later;
//! * [`Published`]: the cell for tables that many threads read on every exit and one thread seldom changes;
//! * [`VmEvents`]: the one place where the end of a machine is decided;
//! * [`thread`]: how threads are started, and what each kind of them may ask of the kernel;
//! * [`LogLimit`]: keeps a guest from flooding the log; [`file_kind`]: what messages call a file.
//!
//! No devices, no vCPU loop and no guest RAM live here.

mod barrier;
mod deferred;
mod dirty;
mod disabled_exits;
mod error;
mod event;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
mod fence;
mod file_kind;
mod grace;
mod ioctl;
pub mod irq;
mod kvm;
mod log_limit;
#[cfg(loom)]
pub mod model;
mod published;
pub mod seam;
pub mod stats;
mod sync;
pub mod thread;
mod vm;

pub use deferred::{Completer, Deferred, deferred};
pub use dirty::{
    DirtyMechanism, DirtyRings, RingCollector, RingEntry, RingFullError, RingItem, RingMapping, RingPage,
};
pub use disabled_exits::DisabledExits;
pub use error::IoctlError;
pub use event::{VmEvent, VmEvents};
pub use fence::{LightFence, heavy_fence};
pub use file_kind::file_kind;
pub use kvm::{Capabilities, Kvm, KvmOpenError};
pub use log_limit::LogLimit;
pub use published::{InReadSection, Published, REAPER, ReadGuard, Retired, in_read_section, prepare_readers};
pub use vm::{ChipState, Vm};
