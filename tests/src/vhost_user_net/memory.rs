//! `Memory`: guest RAM as the front end has handed it over, mapped here.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// All regions, and where the front end has them.
#[derive(Default)]
pub(super) struct Memory {
    guest: GuestMemoryMmap,
    /// For each region its address in the front end's process, its size, and its address in the guest.
    places: Vec<(u64, u64, u64)>,
}

impl Memory {
    /// Maps `regions`, each from its file.
    ///
    /// # Errors
    ///
    /// One cannot be mapped, or two overlap.
    pub(super) fn map(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self> {
        ensure!(regions.len() == files.len(), "{} regions in {} files", regions.len(), files.len());
        let (mut mapped, mut places) = (Vec::new(), Vec::new());
        for (region, file) in regions.iter().zip(files) {
            let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = *region;
            let size = usize::try_from(memory_size)?;
            let mapping = MmapRegion::from_file(FileOffset::new(file, mmap_offset), size)?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(guest_phys_addr));
            mapped.push(region.context("a region beyond the last address")?);
            places.push((user_addr, memory_size, guest_phys_addr));
        }
        mapped.sort_by_key(GuestMemoryRegion::start_addr);
        Ok(Self { guest: GuestMemoryMmap::from_regions(mapped)?, places })
    }

    pub(super) fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// What the kernel is to know of it.
    pub(super) fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |region: &GuestRegionMmap| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..VhostUserMemoryRegionInfo::default()
        };
        self.guest.iter().map(region).collect()
    }

    /// Where in the guest is what the front end has at `address` of its process.
    pub(super) fn guest_address(&self, address: u64) -> Option<u64> {
        self.places.iter().find_map(|&(start, size, guest)| {
            let offset = address.checked_sub(start).filter(|offset| *offset < size)?;
            guest.checked_add(offset)
        })
    }
}
