//! vhost: queues that the host's kernel serves in the place of a worker (Documentation of the ioctls: `linux/vhost.h`).
//!
//! * [`VhostFd`]: one descriptor of vhost; behind it is the kernel, [`VhostNet`] or [`VhostVsock`], another process
//!   ([`VhostUser`](super::vhost_user::VhostUser)), or a test;
//! * [`VhostMemory`]: what of guest RAM the kernel has a map of, which follows the address space;
//! * [`Backend`]: the descriptors of one device, and which of its rings they serve at the moment;
//! * `serve`: a device whose driver is ready, some of its queues with the kernel and the others on a worker.
//!
//! A doorbell's eventfd is the kernel's kick, and the eventfd of an interrupt vector its call, if the transport has such: then no thread
//! here is woken for a request. Otherwise a worker passes each interrupt on.
//!
//! Of what a device does here dirty pages are not logged.

mod backend;
pub mod calls;
mod error;
mod fd;
mod ioctl;
mod kernel;
mod memory;
mod serve;
#[cfg(test)]
#[cfg(not(loom))]
pub(super) mod testing;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use backend::Backend;
pub(super) use backend::{areas, place};
pub use error::VhostError;
pub use fd::{VhostFd, VhostRing};
pub use kernel::{HandedVhost, VhostNet, VhostVsock};
pub use memory::VhostMemory;
pub(super) use serve::{Attend, KernelQueues, Servers, Unattended};
