//! What stands before each frame in a buffer (`struct virtio_net_hdr_v1`; virtio 1.3, section 5.1.6), and how long both can be.

/// Bytes of the header. Without VIRTIO_NET_F_HASH_REPORT it is always this long.
pub const HEADER: u32 = 12;

/// Where in it the number of merged buffers is, a little-endian 16-bit word.
pub const NUM_BUFFERS: u32 = 10;

/// Bytes of an Ethernet header, without which no frame is one.
pub const ETHERNET: u32 = 14;

/// The longest frame with its header: an IP packet of 65,535 bytes behind an Ethernet header with a VLAN tag.
pub const LONGEST: u32 = HEADER + ETHERNET + 4 + 65_535;

/// Frames of one batch.
pub const BATCH: usize = 64;

/// No more frames go into a batch that has so many bytes: the kernel copies each inside the system call, while the other direction
/// waits.
pub const BATCH_BYTES: u64 = 512 << 10;
