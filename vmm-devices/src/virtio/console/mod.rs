//! The console device (virtio 1.3, section 5.3): one port, with a size.
//!
//! Queue 0 takes what the guest is to read, queue 1 what it writes. Output goes to a writer that never blocks; input waits in a
//! FIFO of [`FIFO`] bytes, and whoever brings more is told when it is empty. Several ports and their control queues are not
//! offered.

mod device;
mod queue;
mod shared;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use device::Console;
pub use shared::FIFO;
