//! A scripted driver over guest memory without a guest, for tests of queues, devices and transports.
//!
//! * [`ram`]: guest RAM with a hole in it;
//! * [`Driver`]: one queue from the driver's side, well-behaved or word by word;
//! * [`Started`]: a device that was started without a transport.

mod driver;
mod interrupts;
mod started;

use std::sync::Arc;

pub use driver::{Driver, INDIRECT, NEXT, Request, Used, WRITE};
pub use interrupts::CountedInterrupts;
pub use started::Started;
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Backing, RamRange};

/// Two ranges that adjoin, so that a buffer can lie in both, and one behind a hole.
pub const RAM: [RamRange; 3] = [
    RamRange { start: 0, size: 0x20_0000 },
    RamRange { start: 0x20_0000, size: 0x10_0000 },
    RamRange { start: 0x40_0000, size: 0x10_0000 },
];

/// Guest RAM of the ranges [`RAM`].
///
/// # Panics
/// The host has no memory.
#[must_use]
#[expect(clippy::expect_used, reason = "for tests")]
pub fn ram() -> Arc<AddressSpace> {
    let memory = AddressSpace::new(Arc::new(FakeVm::default()));
    memory.map(&RAM, &Backing::default()).expect("RAM for a test");
    Arc::new(memory)
}
