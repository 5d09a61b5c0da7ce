//! The entropy device (virtio 1.3, section 5.4): random bytes of the host's kernel.
//!
//! One queue, no features, no configuration. The driver lends writable buffers, the device fills them. A request gets at
//! most [`REQUEST`] bytes, whatever it has room for, so that no driver keeps the worker from others.

mod device;
mod queue;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use device::Rng;
pub use queue::REQUEST;
