//! Network devices (virtio 1.3, section 5.1): Ethernet frames between a guest and a link of the host.
//!
//! * [`Link`]: the host's end, a descriptor for each pair of queues, and what it can do: a [`Tap`], or a [`StreamLink`];
//! * [`Net`]: the device: pairs of a receive and a transmit queue, and a control queue.
//!
//! With vhost the kernel serves the pairs; of all here, only the control queue and the state of the link are left.
//!
//! A frame goes between the descriptor and guest memory in one system call, header and all. Either direction takes turns with the
//! other in bounded batches on the worker of its pair. Frames that find no buffer wait in the host's queue, which drops what does
//! not fit; nobody is woken for them again and again.

pub mod calls;
mod control;
mod counters;
mod device;
mod frame;
mod kernel;
mod link;
mod offloads;
mod receive;
mod shared;
mod stream;
mod tap;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod transmit;

pub(super) use control::{Carry, ControlQueue};
pub use counters::NetCounts;
pub(super) use device::NoQueue;
pub use device::{Net, NetOptions};
pub use link::{Link, LinkQueue};
pub use offloads::Offloads;
pub use stream::{StreamError, StreamLink};
pub use tap::{HandedAgain, HandedTap, MAX_PAIRS, Tap, TapError, TapOptions, TapSource};

pub use super::throttle::Throttle;
