//! vhost-user: queues that another process of the host serves, which has guest RAM in common with this one (Documentation of the
//! protocol: QEMU's `docs/interop/vhost-user.rst`). What passes on the socket is the vhost crate's.
//!
//! * [`VhostUser`]: the back end at the other end of a socket, which comes and goes; a [`VhostFd`](super::vhost::VhostFd) of all
//!   queues of its device;
//! * [`VhostUserDevice`]: the device, of a [`Class`]: block, network or file system;
//! * `table`: what of guest RAM the back end has a map of;
//! * `pairs`: how many pairs of queues a network device's back end has, and which of them a driver uses;
//! * `deadline`: a back end that does not answer is as one that has gone;
//! * `remains`: what becomes of requests when it has gone.
//!
//! A back end is trusted with guest RAM, and with nothing else: whatever it says or leaves out costs its own device alone.

pub mod calls;
mod class;
mod connection;
mod counters;
mod deadline;
mod device;
mod error;
mod hang_up;
mod pairs;
mod peer;
mod remains;
mod table;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use class::{Class, FsTag};
pub use counters::VhostUserCounts;
pub use device::VhostUserDevice;
pub use error::VhostUserError;
pub use peer::VhostUser;
