//! The bits of a device's status (virtio 1.3, section 2.1).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The guest has found the device.
pub const ACKNOWLEDGE: u8 = bit(VIRTIO_CONFIG_S_ACKNOWLEDGE);
/// The guest can drive it.
pub const DRIVER: u8 = bit(VIRTIO_CONFIG_S_DRIVER);
/// The features are negotiated.
pub const FEATURES_OK: u8 = bit(VIRTIO_CONFIG_S_FEATURES_OK);
/// The driver is ready.
pub const DRIVER_OK: u8 = bit(VIRTIO_CONFIG_S_DRIVER_OK);
/// The device needs a reset. Set by the device.
pub const NEEDS_RESET: u8 = bit(VIRTIO_CONFIG_S_NEEDS_RESET);
/// The guest has given up.
pub const FAILED: u8 = bit(VIRTIO_CONFIG_S_FAILED);

const fn bit(bit: u32) -> u8 {
    (bit & 0xff) as u8
}
