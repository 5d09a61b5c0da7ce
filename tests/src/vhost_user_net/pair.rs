//! `Pair`: a receive and a transmit ring, which the kernel's vhost-net serves.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use anyhow::Result;
use vhost::net::VhostNet as _;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::GuestMemoryMmap;
use vmm_devices::virtio::net::LinkQueue;
use vmm_sys_util::eventfd::EventFd;

use super::memory::Memory;

/// Rings of a pair.
const RINGS: usize = 2;

/// A descriptor of vhost-net, and the queue of the interface at its other end.
pub(super) struct Pair {
    fd: Net<Arc<GuestMemoryMmap>>,
    link: File,
    rings: [Ring; RINGS],
}

/// What the kernel does not keep of a ring, or not while it rests.
#[derive(Default)]
struct Ring {
    size: u16,
    /// There while the ring is started.
    kick: Option<EventFd>,
    is_enabled: bool,
}

/// The descriptor, and the guest memory in which rings are.
struct View<'a> {
    fd: &'a dyn AsRawFd,
    memory: &'a GuestMemoryMmap,
}

impl AsRawFd for View<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl<'a> VhostKernBackend for View<'a> {
    type AS = &'a GuestMemoryMmap;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// The kernel looks for itself; the crate refuses an area that ends where a region does.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

impl Pair {
    /// Opens vhost-net for `link`.
    ///
    /// # Errors
    ///
    /// The host does not give what it takes.
    pub(super) fn open(link: &LinkQueue) -> Result<Self> {
        let fd = Net::new(Arc::default())?;
        fd.set_owner()?;
        let link = link.as_fd().try_clone_to_owned()?.into();
        Ok(Self { fd, link, rings: Default::default() })
    }

    pub(super) fn features(&self) -> vhost::Result<u64> {
        self.fd.get_features()
    }

    pub(super) fn set_features(&self, features: u64) -> vhost::Result<()> {
        self.fd.set_features(features)
    }

    pub(super) fn set_memory(&self, memory: &Memory) -> vhost::Result<()> {
        self.fd.set_mem_table(&memory.regions()).map(drop)
    }

    pub(super) fn set_size(&mut self, ring: usize, size: u16) -> vhost::Result<()> {
        self.rings[ring].size = size;
        self.fd.set_vring_num(ring, size)
    }

    pub(super) fn set_base(&self, ring: usize, base: u16) -> vhost::Result<()> {
        self.fd.set_vring_base(ring, base)
    }

    /// Descriptors, available ring and used ring are at these addresses of the guest.
    pub(super) fn set_places(&self, ring: usize, places: [u64; 3], memory: &Memory) -> vhost::Result<()> {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = places;
        let size = self.rings[ring].size;
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            desc_table_addr,
            avail_ring_addr,
            used_ring_addr,
            ..VringConfigData::default()
        };
        View { fd: &self.fd, memory: memory.guest() }.set_vring_addr(ring, &config)
    }

    pub(super) fn set_call(&self, ring: usize, call: &EventFd) -> vhost::Result<()> {
        self.fd.set_vring_call(ring, call)
    }

    pub(super) fn set_error(&self, ring: usize, error: &EventFd) -> vhost::Result<()> {
        self.fd.set_vring_err(ring, error)
    }

    /// Starts the ring, which is served as soon as it is enabled.
    pub(super) fn start(&mut self, ring: usize, kick: EventFd) -> vhost::Result<()> {
        self.fd.set_vring_kick(ring, &kick)?;
        self.rings[ring].kick = Some(kick);
        self.update(ring)
    }

    /// Stops the ring; from where it goes on.
    pub(super) fn stop(&mut self, ring: usize) -> vhost::Result<u32> {
        self.rings[ring].kick = None;
        self.update(ring)?;
        self.fd.get_vring_base(ring)
    }

    pub(super) fn enable(&mut self, ring: usize, is_enabled: bool) -> vhost::Result<()> {
        self.rings[ring].is_enabled = is_enabled;
        self.update(ring)
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.rings.iter().all(|ring| ring.is_enabled)
    }

    fn update(&self, ring: usize) -> vhost::Result<()> {
        let Ring { kick, is_enabled, .. } = &self.rings[ring];
        let Some(kick) = kick.as_ref().filter(|_| *is_enabled) else {
            return self.fd.set_backend(ring, None);
        };
        self.fd.set_backend(ring, Some(&self.link))?;
        // What came before went to nobody.
        kick.write(1).map_err(vhost::Error::IOError)
    }
}
