//! The memory device (virtio 1.3, section 5.15): RAM that the driver plugs and unplugs in blocks, up to the size that the host asks
//! it for.
//!
//! One queue, in which the driver asks for changes of blocks of a [`HotplugRegion`](vmm_memory::HotplugRegion). What is not plugged is not there, for the
//! guest and for devices alike (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE is offered; a driver that does not accept it reads ones).
//!
//! A change waits for those who read guest RAM, so it is not made in the batch that finds the request: it is left at the desk, made by
//! another handler of the same worker, which has no snapshot of guest RAM in hand, and answered in a batch after that. Requests
//! are served one after the other. The worker waits meanwhile, for seconds if the machine does not come to a standstill: no other
//! device is to be served on it.
//!
//! * `request`: what is asked and answered, as bytes; `region`: the rules, and the blocks; `desk`: changes that wait;
//! * `queue`: the chains; `device`: what a transport sees.

pub mod calls;
mod counters;
mod desk;
mod device;
mod queue;
mod region;
mod request;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use counters::MemCounts;
pub use device::{Mem, MemOptions};
pub use region::SizeError;
