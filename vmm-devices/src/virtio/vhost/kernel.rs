//! The kernel's vhost: `/dev/vhost-net` and `/dev/vhost-vsock`, by the vhost crate.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::fs::{major, minor};
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock as _;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::{VhostError, VhostFd, VhostRing, ioctl};
use crate::virtio::features;
use crate::virtio::net::LinkQueue;

const NET: &str = "/dev/vhost-net";
const NET_MODULE: &str = "vhost_net";
const VSOCK: &str = "/dev/vhost-vsock";
const VSOCK_MODULE: &str = "vhost_vsock";

/// What the crate keeps of guest memory in a descriptor: nothing. Rings are set up through a [`View`].
type NoMemory = Arc<GuestMemory>;

/// The number of `/dev/vhost-net` as a device (`MISC_MAJOR`, `VHOST_NET_MINOR`).
const NET_NUMBER: (u32, u32) = (10, 238);

/// `/dev/vhost-net`, opened and nobody's so far.
#[derive(Debug)]
pub struct HandedVhost(File);

impl HandedVhost {
    /// Opens it.
    ///
    /// # Errors
    /// [`VhostError`] says what is missing, and what mends it.
    pub fn open() -> Result<Self, VhostError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let missing = |source| VhostError::Device { path: NET, module: NET_MODULE, source };
        options.open(NET).map(Self).map_err(missing)
    }

    /// Takes a descriptor that another process has opened.
    ///
    /// # Errors
    /// It is of something else.
    pub fn adopt(fd: OwnedFd) -> Result<Self, VhostError> {
        let file = File::from(fd);
        let is_it = file.metadata().is_ok_and(|metadata| {
            let number = (major(metadata.rdev()), minor(metadata.rdev()));
            metadata.file_type().is_char_device() && number == NET_NUMBER
        });
        if is_it { Ok(Self(file)) } else { Err(VhostError::OtherDescriptor { path: NET }) }
    }
}

impl From<HandedVhost> for OwnedFd {
    fn from(handed: HandedVhost) -> Self {
        handed.0.into()
    }
}

/// `/dev/vhost-net` with one queue pair of an interface behind it: ring 0 receives, ring 1 transmits.
pub struct VhostNet {
    fd: File,
    /// The link's queue: nothing here keeps its interface when that lets go of it.
    link: Arc<LinkQueue>,
    features: u64,
}

impl VhostNet {
    /// Opens it for `link`, a descriptor of a TAP whose frames have a header of 12 bytes. It is this process's then.
    ///
    /// # Errors
    /// [`VhostError`] says what is missing, and what mends it.
    pub fn open(link: &Arc<LinkQueue>) -> Result<Self, VhostError> {
        Self::new(HandedVhost::open()?, link)
    }

    /// The same with one that is open.
    ///
    /// # Errors
    /// [`VhostError`].
    pub fn new(HandedVhost(fd): HandedVhost, link: &Arc<LinkQueue>) -> Result<Self, VhostError> {
        let features = set_up(NET, &fd)?;
        Ok(Self { fd, link: Arc::clone(link), features })
    }

    fn set_backends(&self, rings: &[VhostRing], link: Option<BorrowedFd<'_>>) -> io::Result<()> {
        rings.iter().try_for_each(|ring| ioctl::set_backend(&self.fd, ring.index, link))
    }
}

impl VhostFd for VhostNet {
    fn features(&self) -> u64 {
        self.features
    }

    fn set_memory(&self, memory: &GuestMemory) -> io::Result<()> {
        set_memory(&self.fd, memory)
    }

    fn start(&self, features: u64, rings: &[VhostRing], memory: &GuestMemory) -> io::Result<()> {
        set_rings(&self.fd, features & self.features, rings, memory)?;
        // Of this call alone.
        let link = self.link.as_fd().try_clone_to_owned()?;
        self.set_backends(rings, Some(link.as_fd()))
    }

    fn stop(&self, rings: &[VhostRing]) -> io::Result<Vec<u16>> {
        self.set_backends(rings, None)?;
        bases(&self.fd, rings)
    }

    fn set_call(&self, ring: usize, call: &EventFd) -> io::Result<()> {
        set_call(&self.fd, ring, call)
    }
}

/// `/dev/vhost-vsock` for one guest: ring 0 receives, ring 1 transmits.
pub struct VhostVsock {
    fd: Vsock<NoMemory>,
    features: u64,
}

impl VhostVsock {
    /// Opens it for the guest with this address, which is nobody else's as long as this is open. It is this process's then.
    ///
    /// # Errors
    /// [`VhostError`] says what is missing, and what mends it.
    pub fn open(cid: u32) -> Result<Self, VhostError> {
        let fd = Vsock::new(NoMemory::default());
        let fd = fd.map_err(|error| missing(VSOCK, VSOCK_MODULE, error))?;
        let features = set_up(VSOCK, &fd)?;
        fd.set_guest_cid(cid.into()).map_err(|error| match host(error) {
            source if source.raw_os_error() == Some(libc::EADDRINUSE) => VhostError::CidInUse { cid },
            source => VhostError::SetUp { path: VSOCK, step: "its CID", source },
        })?;
        Ok(Self { fd, features })
    }
}

impl VhostFd for VhostVsock {
    fn features(&self) -> u64 {
        self.features
    }

    fn set_memory(&self, memory: &GuestMemory) -> io::Result<()> {
        set_memory(&self.fd, memory)
    }

    fn start(&self, features: u64, rings: &[VhostRing], memory: &GuestMemory) -> io::Result<()> {
        set_rings(&self.fd, features & self.features, rings, memory)?;
        self.fd.start().map_err(host)
    }

    fn stop(&self, rings: &[VhostRing]) -> io::Result<Vec<u16>> {
        self.fd.stop().map_err(host)?;
        bases(&self.fd, rings)
    }

    fn set_call(&self, ring: usize, call: &EventFd) -> io::Result<()> {
        set_call(&self.fd, ring, call)
    }
}

/// A descriptor, and the guest memory in which its rings are while they are set up.
struct View<'a> {
    fd: &'a dyn AsRawFd,
    memory: &'a GuestMemory,
}

impl<'a> View<'a> {
    /// For what is not about guest memory.
    fn without_memory(fd: &'a dyn AsRawFd, none: &'a GuestMemory) -> Self {
        Self { fd, memory: none }
    }
}

impl AsRawFd for View<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl<'a> VhostKernBackend for View<'a> {
    type AS = &'a GuestMemory;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// Whoever starts rings has seen that they are in memory. The crate's own check refuses an area that ends where a region does.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

/// Makes a descriptor this process's; returns its features.
fn set_up(path: &'static str, fd: &dyn AsRawFd) -> Result<u64, VhostError> {
    let none = GuestMemory::new();
    let view = View::without_memory(fd, &none);
    let failed = |step| move |error| VhostError::SetUp { path, step, source: host(error) };
    view.set_owner().map_err(failed("its owner"))?;
    let features = view.get_features().map_err(failed("its features"))?;
    match features::OF_TRANSPORT & !features {
        0 => Ok(features),
        missing => Err(VhostError::Features { path, missing }),
    }
}

/// Tells it of all regions. Those that adjoin both in the guest and here are one: the kernel takes 64 unless it is told otherwise.
fn set_memory(fd: &dyn AsRawFd, memory: &GuestMemory) -> io::Result<()> {
    let mut regions: Vec<VhostUserMemoryRegionInfo> = Vec::new();
    for region in memory.iter() {
        let (start, size) = (region.start_addr().raw_value(), region.len());
        let userspace_addr = region.host_address() as u64;
        match regions.last_mut() {
            Some(last) if adjoins(last, start, userspace_addr) => {
                last.memory_size = last.memory_size.saturating_add(size);
            }
            _ => regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: start,
                memory_size: size,
                userspace_addr,
                ..VhostUserMemoryRegionInfo::default()
            }),
        }
    }
    if regions.is_empty() {
        // The crate has no way to say so, and nothing runs.
        return Ok(());
    }
    let none = GuestMemory::new();
    View::without_memory(fd, &none).set_mem_table(&regions).map(drop).map_err(host)
}

fn adjoins(before: &VhostUserMemoryRegionInfo, start: u64, userspace_addr: u64) -> bool {
    before.guest_phys_addr.checked_add(before.memory_size) == Some(start)
        && before.userspace_addr.checked_add(before.memory_size) == Some(userspace_addr)
}

/// Sets up rings, none of which runs.
fn set_rings(fd: &dyn AsRawFd, features: u64, rings: &[VhostRing], memory: &GuestMemory) -> io::Result<()> {
    let view = View { fd, memory };
    view.set_features(features).map_err(host)?;
    for VhostRing { index, queue, kick, call, error } in rings {
        let config = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            desc_table_addr: queue.descriptor_table,
            avail_ring_addr: queue.available_ring,
            used_ring_addr: queue.used_ring,
            ..VringConfigData::default()
        };
        let index = *index;
        view.set_vring_num(index, queue.size)
            .and_then(|()| view.set_vring_base(index, queue.next_available))
            .and_then(|()| view.set_vring_addr(index, &config))
            .and_then(|()| view.set_vring_call(index, call))
            .and_then(|()| view.set_vring_err(index, error))
            .and_then(|()| view.set_vring_kick(index, kick))
            .map_err(host)?;
    }
    Ok(())
}

fn set_call(fd: &dyn AsRawFd, ring: usize, call: &EventFd) -> io::Result<()> {
    let none = GuestMemory::new();
    View::without_memory(fd, &none).set_vring_call(ring, call).map_err(host)
}

/// From where rings that were stopped go on.
fn bases(fd: &dyn AsRawFd, rings: &[VhostRing]) -> io::Result<Vec<u16>> {
    let none = GuestMemory::new();
    let view = View::without_memory(fd, &none);
    let base = |ring: &VhostRing| {
        let base = view.get_vring_base(ring.index).map_err(host)?;
        // More only with packed rings, which are not offered.
        Ok(u16::try_from(base & 0xffff).unwrap_or(0))
    };
    rings.iter().map(base).collect()
}

fn missing(path: &'static str, module: &'static str, error: vhost::Error) -> VhostError {
    VhostError::Device { path, module, source: host(error) }
}

/// The kernel's answer in an error of the crate.
fn host(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error) | vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => {
            error
        }
        other => io::Error::other(other.to_string()),
    }
}
