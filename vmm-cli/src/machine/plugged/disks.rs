//! The disks among the devices: by name, for those who change them while they are in use, and who count what they have done.

use std::sync::Arc;

use vmm_devices::virtio::block::{Block, ResizeError};

use super::state::{Device, PluggedDisk};
use super::{Plugged, Reserved, Slots};
use crate::config::{DeviceId, DiskConfig, check_settings};
use crate::control::devices::DeviceError;
use crate::control::disks::{ControlledDisks, DiskLimits, DiskRefusal, DiskSize, NewSize, SETTLE_LIMIT};
use crate::control::limits::{self, NewLimits};
use crate::control::roles::DiskFiles;
use crate::disks::{Disk, Images, OpenError};
use crate::kept::Named;
use crate::stats::DiskCounts;

/// A disk that somebody works on, without the lock. Who waits for its end waits for the drop of this too.
struct Held<'a> {
    // Given back before that is said.
    block: Arc<Block>,
    _holder: Holder<'a>,
}

/// Has a device known until it is dropped.
struct Holder<'a> {
    plugged: &'a Plugged,
    number: u64,
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        let mut state = self.plugged.lock();
        if let Some(device) = state.devices.iter_mut().find(|device| device.number == self.number) {
            device.holders -= 1;
        }
        drop(state);
        self.plugged.finish(self.number);
    }
}

impl Plugged {
    /// What each disk has counted, in the order in which they were plugged.
    pub(in crate::machine) fn disk_counts(&self) -> Vec<DiskCounts> {
        let counts = |PluggedDisk { disk, block }: &PluggedDisk| DiskCounts {
            id: disk.id().clone(),
            monitor: block.counts(),
        };
        self.lock().disks().map(counts).collect()
    }

    fn hold(&self, id: &DeviceId) -> Result<Held<'_>, DiskRefusal> {
        let mut state = self.lock();
        let disks: Vec<_> = state.disks().map(|plugged| plugged.disk.id().clone()).collect();
        let found = state.devices.iter_mut().find(|device| device.id == id.as_str());
        let found = found.and_then(|Device { number, behind, holders, .. }| {
            let block = Arc::clone(&behind.as_ref()?.disk()?.block);
            *holders += 1;
            Some(Held { block, _holder: Holder { plugged: self, number: *number } })
        });
        found.ok_or_else(|| DiskRefusal::Unknown { id: id.clone(), disks })
    }
}

impl ControlledDisks for Plugged {
    fn resize(&self, id: &DeviceId, size: Option<NewSize>) -> Result<DiskSize, DiskRefusal> {
        let Held { block, .. } = &self.hold(id)?;
        let resized = match size {
            None => block.rescan(),
            Some(NewSize { bytes, may_shrink }) => block.resize(bytes, may_shrink, SETTLE_LIMIT),
        };
        resized.map(|bytes| DiskSize { disk: id.clone(), bytes }).map_err(refusal)
    }

    fn limit(&self, id: &DeviceId, new: NewLimits) -> Result<DiskLimits, DiskRefusal> {
        let limits = self.hold(id)?.block.change_limits(|before| new.applied(before));
        let (bandwidth, operations) = (limits::text(limits.bytes), limits::text(limits.operations));
        Ok(DiskLimits { disk: id.clone(), bandwidth, operations })
    }
}

/// Takes the image of a disk to come, beside all other files of the machine in `slots`.
pub(super) fn adopt(
    config: &DiskConfig,
    files: DiskFiles,
    slots: &Slots,
    reserved: &Reserved<'_>,
) -> Result<Arc<Disk>, DeviceError> {
    let bad_disk = |error: anyhow::Error| DeviceError::BadDisk { message: format!("{error:#}") };
    check_settings(config).map_err(|error| bad_disk(error.into()))?;
    let images = Images::adopt(config, files).map_err(OpenError::device_error)?;
    let found = images.identities().map_err(|error| bad_disk(error.into()))?;
    slots.others.check(config, &found).map_err(|error| bad_disk(error.into()))?;
    let backend = images.backend().map_err(OpenError::device_error)?;
    Ok(Arc::new(Disk::new(backend, config, reserved.id.clone(), slots.config.cpu.count)?))
}

/// By whose it is to mend.
fn refusal(error: ResizeError) -> DiskRefusal {
    let kind = match &error {
        ResizeError::Busy { .. } | ResizeError::InFlight { .. } => DiskRefusal::Busy,
        ResizeError::Fixed { .. } | ResizeError::NotSectors { .. } | ResizeError::Shrinks { .. } => {
            DiskRefusal::Refused
        }
        ResizeError::Length { .. } | ResizeError::Host { .. } => DiskRefusal::Failed,
    };
    kind(format!("{:#}", anyhow::Error::new(error)))
}

#[cfg(test)]
mod tests {
    use vmm_core::VmEvents;
    use vmm_devices::pci::PciAddress;
    use vmm_devices::virtio::block::{Image, ImageOptions};

    use super::super::state::{Behind, Rest};
    use super::super::{Backing, DISK};
    use super::*;
    use crate::config::VmConfig;
    use crate::control::devices::DeviceControl;
    use crate::disks::Disks;
    use crate::nets::Nets;

    #[test]
    fn a_disk_that_goes_is_known_until_nobody_works_on_it_any_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let disk = format!("path={},format=raw,engine=threads", file.path().display());
        let config = VmConfig { disk: vec![disk.parse().unwrap()], ..VmConfig::default() };
        let disks = Arc::new(Disks::open(&config).unwrap());
        let disk = disks.of_next_life().remove(0);
        let id = disk.id().clone();
        let block = Arc::new(disk.device(&VmEvents::new().unwrap()).unwrap());
        let address = PciAddress::new(1, 0);
        let device =
            Device::new(id.to_string(), DISK, address, Some(Behind::Disk(PluggedDisk { disk, block })));
        let backing = Backing { disks, nets: Arc::new(Nets::new([])) };
        let plugged = Plugged::new(vec![device], backing, None);
        let is_free = || Image::open(file.path(), ImageOptions::default()).is_ok();
        assert_eq!(plugged.resize(&id, None).unwrap().bytes, 4096);
        assert_eq!(plugged.disk_counts().len(), 1);

        let held = plugged.hold(&id).unwrap();
        plugged.gone(0, Rest::Nothing);
        assert!(plugged.disk_counts().is_empty());
        let unknown = DiskRefusal::Unknown { id: id.clone(), disks: Vec::new() };
        assert_eq!(plugged.resize(&id, None), Err(unknown.clone()));
        assert_eq!(plugged.limit(&id, NewLimits::default()), Err(unknown));
        assert!(plugged.list().len() == 1 && !is_free(), "it is told to have gone too early");
        drop(held);
        assert!(plugged.list().is_empty() && is_free(), "something is left");
    }
}
