//! `BackEnd`: what a front end asks for, and what becomes of it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_devices::virtio::net::{Link, Offloads, Tap};

use super::eventfd::eventfd;
use super::memory::Memory;
use super::pair::Pair;

/// What the kernel's vhost-net does.
const OF_KERNEL: u64 = bit(VIRTIO_F_VERSION_1)
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(VIRTIO_RING_F_EVENT_IDX)
    | bit(VIRTIO_NET_F_MRG_RXBUF);

/// What the interface does.
const OF_INTERFACE: u64 = bit(VIRTIO_NET_F_CSUM)
    | bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_HOST_TSO4)
    | bit(VIRTIO_NET_F_HOST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6);

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// The back end of one front end.
pub(super) struct BackEnd {
    tap: Arc<Tap>,
    pairs: Vec<Pair>,
    memory: Memory,
}

impl BackEnd {
    /// With a pair of rings for each queue of `tap`.
    ///
    /// # Errors
    ///
    /// The host does not give what it takes.
    pub(super) fn new(tap: &Arc<Tap>) -> anyhow::Result<Self> {
        let pairs = tap.queues().iter().map(|queue| Pair::open(queue)).collect::<anyhow::Result<_>>()?;
        Ok(Self { tap: Arc::clone(tap), pairs, memory: Memory::default() })
    }

    /// Has frames for the guest come to the pairs that are enabled.
    fn spread(&self) -> io::Result<()> {
        let enabled = self.pairs.iter().take_while(|pair| pair.is_enabled()).count();
        self.tap.use_pairs(enabled.max(1))
    }
}

/// The pair of a ring, and which of its two it is.
fn place(pairs: &mut [Pair], ring: impl Into<u32>) -> Result<(&mut Pair, usize)> {
    let ring = usize::try_from(ring.into()).map_err(|_| Error::InvalidParam)?;
    pairs.get_mut(ring / 2).map(|pair| (pair, ring % 2)).ok_or(Error::InvalidParam)
}

fn host(error: vhost::Error) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

/// Of a request that no feature allows.
fn refused<T>() -> Result<T> {
    Err(Error::InvalidOperation("it was not offered"))
}

impl VhostUserBackendReqHandlerMut for BackEnd {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        let mut features = OF_KERNEL;
        for pair in &self.pairs {
            features &= pair.features().map_err(host)?;
        }
        let several = if self.pairs.len() > 1 { bit(VIRTIO_NET_F_MQ) } else { 0 };
        Ok(features | OF_INTERFACE | several | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let has = |feature| features & bit(feature) != 0;
        let offloads = Offloads {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ..Offloads::default()
        };
        self.tap.leave(offloads).map_err(Error::ReqHandlerError)?;
        self.pairs.iter().try_for_each(|pair| pair.set_features(features & OF_KERNEL)).map_err(host)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    /// Pairs of them, as QEMU counts those of network devices.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.pairs.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let memory = Memory::map(regions, files);
        let memory = memory.map_err(|error| Error::ReqHandlerError(io::Error::other(error)))?;
        self.pairs.iter().try_for_each(|pair| pair.set_memory(&memory)).map_err(host)?;
        self.memory = memory;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.set_size(ring, size).map_err(host)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let mut places = [descriptor, available, used];
        for place in &mut places {
            *place = self.memory.guest_address(*place).ok_or(Error::InvalidParam)?;
        }
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.set_places(ring, places, &self.memory).map_err(host)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.set_base(ring, base).map_err(host)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.stop(ring).map(|base| VhostUserVringState::new(index, base)).map_err(host)
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (pair, ring) = place(&mut self.pairs, index)?;
        let kick = eventfd(fd.ok_or(Error::IncorrectFds)?);
        pair.start(ring, kick).map_err(host)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.set_call(ring, &eventfd(fd.ok_or(Error::IncorrectFds)?)).map_err(host)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.set_error(ring, &eventfd(fd.ok_or(Error::IncorrectFds)?)).map_err(host)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (pair, ring) = place(&mut self.pairs, index)?;
        pair.enable(ring, enable).map_err(host)?;
        self.spread().map_err(Error::ReqHandlerError)
    }

    fn reset_owner(&mut self) -> Result<()> {
        refused()
    }

    fn reset_device(&mut self) -> Result<()> {
        refused()
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        refused()
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        refused()
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        refused()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        refused()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        refused()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        refused()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        refused()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        refused()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        refused()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        refused()
    }

    fn check_device_state(&mut self) -> Result<()> {
        refused()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refused()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        refused()
    }
}
