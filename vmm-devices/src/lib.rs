//! Devices, the buses on which they sit, and the doorbells through which a guest calls them.
//!
//! A device owns handles only: an interrupt trigger, an event sender, a doorbell, a sink. It names no GSI and no KVM
//! descriptor, so each can be tested with a pipe and a `Vec`.
//!
//! Nothing a guest writes may panic: the lints below are denied outside tests.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

pub mod acpi;
mod bus;
pub mod calls;
mod connector;
mod doorbell;
pub mod legacy;
pub mod pci;
mod pvpanic;
pub mod rate_limiter;
mod reconfigure;
pub mod selftest;
mod sync;
mod timer;
pub mod virtio;
mod worker;

pub use bus::{Bus, BusDevice, BusDeviceMut, BusError, Ranges};
pub use connector::{ByPath, Connector};
pub use doorbell::{Doorbell, DoorbellError, IoEventFd};
pub use pvpanic::Pvpanic;
pub use reconfigure::{PostError, Poster, Reconfigure};
pub use timer::Timer;
pub use worker::{Handler, NotAwaited, Progress, Wakeup, Worker, WorkerError};
