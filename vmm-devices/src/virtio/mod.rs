//! virtio 1.3, modern devices only: queues, transports, and a folder for each device.
//!
//! * [`VirtioDevice`]: a type of device, as a transport sees it; started, it is [`Running`];
//! * [`queue`]: the split virtqueue as the device sees it;
//! * [`serve`]: queues of simple devices, on a worker;
//! * [`transport`]: what the driver sees of a device.
//!
//! Nothing that a driver writes ends the process, stops a worker or touches another device. A driver that breaks a ring finds
//! DEVICE_NEEDS_RESET and a device that rests until it is reset.

pub mod balloon;
pub mod block;
mod config;
pub mod console;
mod device;
mod ending;
pub mod features;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rng;
pub mod serve;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod throttle;
pub mod transport;
pub mod vhost;
pub mod vhost_user;
pub mod vsock;

pub use config::read_config;
pub use device::{
    ActivateError, Activation, ActiveQueue, DeviceStatus, Interrupts, QueueInterrupt, QueueReset,
    QueueStopped, Running, Stopped, VirtioDevice,
};
