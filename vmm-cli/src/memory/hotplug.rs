//! The RAM that a guest can plug while it runs: where it lies, what is behind it, and how much of it the guest is asked to have, also after
//! a restart.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use vmm_devices::virtio::mem::calls::VIRTIO_MEM;

use anyhow::{Error, anyhow};
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::mem::{Mem, MemOptions};
use vmm_memory::{AddressSpace, Backing, HotplugError, HotplugLayout, HotplugRegion};

use crate::config::{MemorySize, VmConfig};
use crate::machine::layout;
use crate::outcome::Failure;

/// Most bytes of a memory slot, unless a block is larger: what Linux plugs at once in a machine of less than 64 GiB.
const CHUNK: u64 = 128 << 20;

/// What all lives of a machine have in common.
pub(crate) struct Hotplug {
    backing: Backing,
    layout: HotplugLayout,
    /// Bytes that the guest is asked to have plugged, whoever has asked last.
    requested: Arc<AtomicU64>,
}

impl Hotplug {
    /// As `config` says, if memory is to be plugged at all; made of `backing`, as the RAM is.
    pub(crate) fn of(config: &VmConfig, backing: &Backing) -> Option<Self> {
        let requested = config.memory_hotplug.requested.map_or(0, MemorySize::bytes);
        let requested = Arc::new(AtomicU64::new(requested));
        let backing = backing.further(config.memory.size.bytes());
        Some(Self { backing, layout: layout(config)?, requested })
    }

    /// The device of one life of the machine, with a thread of its own. Nothing is plugged.
    ///
    /// # Errors
    /// What the host does not give.
    pub(crate) fn device(&self, space: &Arc<AddressSpace>, events: &VmEvents) -> Result<Mem, Failure> {
        let region = HotplugRegion::reserve(space, self.layout, &self.backing).map_err(failure)?;
        let worker = Worker::spawn(&VIRTIO_MEM, events.clone()).map_err(Failure::host_cannot)?;
        let options = MemOptions { region, requested: Arc::clone(&self.requested), node: None };
        Ok(Mem::new(Arc::new(worker), options))
    }
}

/// Where memory is plugged, and in which units.
pub(crate) fn layout(config: &VmConfig) -> Option<HotplugLayout> {
    let size = config.memory_hotplug.size?.bytes();
    let block_size = config.memory_hotplug.block_of(&config.memory);
    let range = layout::plugged(config.memory.size.bytes(), size);
    Some(HotplugLayout { range, block_size, chunk_size: block_size.max(CHUNK) })
}

fn failure(error: HotplugError) -> Failure {
    match error {
        HotplugError::Reserve { source, .. } => {
            super::failure_of(source, "the memory that can be plugged (section [memory_hotplug])")
        }
        // The configuration was checked, and nothing else is there.
        error => Failure::internal(Error::new(error)),
    }
}

/// Refuses what is beyond the addresses of the guest's processors, which have `bits` bits.
///
/// # Errors
/// With the last address.
pub(crate) fn check_addresses(config: &VmConfig, bits: u32) -> Result<(), Failure> {
    let end = layout(config).and_then(|layout| layout.range.end()).unwrap_or(0);
    if end <= 1_u64.checked_shl(bits).unwrap_or(u64::MAX) {
        return Ok(());
    }
    let error = anyhow!(
        "memory_hotplug.size (--memory-hotplug) = {}: its last address {:#x} is beyond the {bits} physical address bits of this host; make it, \
         or memory.size (--memory), smaller",
        config.memory_hotplug.size.map_or_else(String::new, |size| size.to_string()),
        end.saturating_sub(1)
    );
    Err(Failure::host_cannot(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MemoryConfig, MemoryHotplugConfig};
    use vmm_core::fake::FakeVm;

    fn config(ram: &str, plugged: &str) -> VmConfig {
        let memory = MemoryConfig { size: ram.parse().unwrap(), ..MemoryConfig::default() };
        let memory_hotplug: MemoryHotplugConfig = plugged.parse().unwrap();
        VmConfig { memory, memory_hotplug, ..VmConfig::default() }
    }

    #[test]
    fn what_is_plugged_lies_behind_the_ram_and_is_as_aligned_as_its_largest_block() {
        for (ram, plugged, start, block, chunk) in [
            ("128M", "size=1G", 4 << 30, 2 << 20, 128 << 20),
            ("3G", "size=1G,block=1G", 4 << 30, 1 << 30, 1 << 30),
            ("3073M", "size=1G,block=256M", 5 << 30, 256 << 20, 256 << 20),
            ("5G", "size=1G", 6 << 30, 2 << 20, 128 << 20),
        ] {
            let layout = layout(&config(ram, plugged)).unwrap();
            let found = (layout.range.start, layout.block_size, layout.chunk_size);
            assert_eq!(found, (start, block, chunk), "{ram} {plugged}");
        }
        assert_eq!(layout(&VmConfig::default()), None);
    }

    #[test]
    fn fault_c2_what_the_processors_cannot_address_is_refused() {
        let config = config("1G", "size=32G");
        check_addresses(&config, 39).unwrap();
        check_addresses(&VmConfig::default(), 32).unwrap();
        let failure = check_addresses(&config, 35).unwrap_err();
        let message = format!("{failure:#}");
        assert_eq!(failure.exit_code(), 3);
        assert!(
            message.contains("= 32G: its last address 0x8ffffffff is beyond the 35 physical"),
            "{message}"
        );
    }

    #[test]
    fn what_was_asked_for_outlives_the_device() {
        let hotplug = Hotplug::of(&config("128M", "size=64M,requested=4M"), &Backing::default()).unwrap();
        let space = Arc::new(AddressSpace::new(Arc::new(FakeVm::default())));
        let events = VmEvents::new().unwrap();
        for (found, next) in [(4 << 20, 6 << 20), (6 << 20, 0), (0, 2 << 20)] {
            let device = hotplug.device(&space, &events).unwrap();
            assert_eq!((device.counts().requested_bytes, device.counts().plugged_bytes), (found, 0));
            device.request(next).unwrap();
        }
    }
}
