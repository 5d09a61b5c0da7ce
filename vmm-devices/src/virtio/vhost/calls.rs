//! What is asked of the kernel's vhost (`linux/vhost.h`).

use vmm_core::thread::{Call, requests};

const VHOST_VIRTIO: u32 = 0xaf;

/// Size of `struct vhost_vring_state`, of `struct vhost_vring_file`, and of `struct vhost_memory` without its regions.
type Pair = [u32; 2];
/// Size of `struct vhost_vring_addr`.
type Addresses = [u64; 5];

/// Rings are started and stopped, and follow the guest's memory.
pub const VHOST: &[Call] = &[
    // VHOST_SET_FEATURES
    Call::ioctl(requests::iow::<u64>(VHOST_VIRTIO, 0x00)),
    // VHOST_SET_MEM_TABLE
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x03)),
    // VHOST_SET_VRING_NUM
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x10)),
    // VHOST_SET_VRING_ADDR
    Call::ioctl(requests::iow::<Addresses>(VHOST_VIRTIO, 0x11)),
    // VHOST_SET_VRING_BASE
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x12)),
    // VHOST_GET_VRING_BASE
    Call::ioctl(requests::iowr::<Pair>(VHOST_VIRTIO, 0x12)),
    // VHOST_SET_VRING_KICK
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x20)),
    // VHOST_SET_VRING_CALL
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x21)),
    // VHOST_SET_VRING_ERR
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x22)),
    // VHOST_NET_SET_BACKEND
    Call::ioctl(requests::iow::<Pair>(VHOST_VIRTIO, 0x30)),
    // VHOST_VSOCK_SET_RUNNING
    Call::ioctl(requests::iow::<u32>(VHOST_VIRTIO, 0x61)),
];

/// A device is given to this process.
pub const VHOST_SETUP: &[Call] = &[
    // VHOST_GET_FEATURES
    Call::ioctl(requests::ior::<u64>(VHOST_VIRTIO, 0x00)),
    // VHOST_SET_OWNER
    Call::ioctl(requests::io(VHOST_VIRTIO, 0x01)),
];
