//! The feature bits that do not belong to one type of device (virtio 1.3, section 6).

use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// A descriptor may lead to a table of descriptors (section 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Either side says from which index on it wants to be notified (sections 2.7.7 and 2.7.10).
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Not a legacy device. Always offered; a driver that does not accept it is refused.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// The driver may reset one queue (section 2.6.1). Offered by a device whose [`Running`](super::Running) can.
pub const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// What every queue here can.
pub const OF_RINGS: u64 = INDIRECT_DESC | EVENT_IDX;

/// What the transports offer of a device whose queues are served here.
pub(super) const OF_TRANSPORT: u64 = OF_RINGS | VERSION_1;

/// The bits that are a device's to offer: those of its type (0 to 23, 50 to 63) and [`RING_RESET`].
pub(super) const OF_DEVICE: u64 = ((1 << 24) - 1) | !((1 << 50) - 1) | RING_RESET;
