//! The socket device (virtio 1.3, section 5.10): streams between programs of the guest and programs of the host.
//!
//! On the host's side there are Unix sockets. A program connects to that of the device, writes `CONNECT port` and a line feed, and
//! finds `OK port` when a program of the guest has accepted; the port is that of the host's end. When a program of the guest
//! connects to the host (CID 2), what listens at the same path with `_` and the port behind it gets the connection.
//!
//! Where the kernel carries the streams (vhost), there is only [`KernelVsock`]; the rest is for the others.
//!
//! * `packet`: the header; `credit`, `connection`: the state of one stream, without sockets and descriptors;
//! * `line`, `host`: what a program says first; sockets, and what waits for them;
//! * `table`, `hub`: all that there is, and what happens to it; `queue`: the chains.

pub mod calls;
mod connection;
mod counters;
mod credit;
mod device;
mod host;
mod hub;
mod kernel;
mod line;
mod packet;
mod queue;
mod shared;
mod table;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use counters::VsockCounts;
pub use device::{Vsock, VsockOptions};
pub use kernel::KernelVsock;
pub use table::{MOST_CONNECTIONS, MOST_GREETINGS};
