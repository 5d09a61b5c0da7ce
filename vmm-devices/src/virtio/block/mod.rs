//! Block devices: disk images, the engines that read and write them, and the virtio device (virtio 1.3, section 5.2).
//!
//! * [`Image`]: a file or block device, opened, checked and locked; [`Storage`]: any format, in calls that block; [`Qcow2`]: one;
//! * [`Engine`]: how requests reach the host: io_uring, or threads;
//! * [`Block`]: the device.

pub mod calls;
mod control;
mod counters;
mod device;
mod engine;
mod gone;
mod image;
mod lock;
mod moderation;
mod pool;
mod qcow2;
mod queue;
mod request;
mod resize;
mod storage;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod turn;
mod uring;

pub use counters::{BlockCounts, LATENCY_CLASSES, Latency};
pub use device::{Backend, Block, BlockError, BlockOptions, EngineChoice};
pub use engine::{Completion, Engine, Operation, Request};
pub use image::{Blocks, HandedImage, Image, ImageError, ImageOptions};
pub use lock::LockHolder;
pub use qcow2::{Backing, Qcow2, Qcow2Error};
pub use resize::ResizeError;
pub use storage::Storage;

pub use super::throttle::Throttle;

/// Bytes of a sector, the unit of the driver's requests whatever the size of a block.
pub const SECTOR: u64 = 512;
