//! The disks among the devices: by name, for those who change them while they are in use, and who count what they have done.

use std::sync::Arc;

use vmm_devices::rate_limiter::{Limit, Limits};
use vmm_devices::virtio::block::{Block, ResizeError};

use super::Plugged;
use super::state::{Device, PluggedDisk};
use crate::config::{DeviceId, Rate};
use crate::control::disks::{
    ControlledDisks, DiskLimits, DiskRefusal, DiskSize, NewLimits, NewSize, SETTLE_LIMIT,
};
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
    pub(in crate::machine) fn counts(&self) -> Vec<DiskCounts> {
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
        let Some(Device { number, disk: Some(plugged), holders, .. }) = found else {
            return Err(DiskRefusal::Unknown { id: id.clone(), disks });
        };
        *holders += 1;
        let holder = Holder { plugged: self, number: *number };
        Ok(Held { block: Arc::clone(&plugged.block), _holder: holder })
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
        let limits = self.hold(id)?.block.change_limits(|before| Limits {
            bytes: new.bandwidth.applied(before.bytes),
            operations: new.operations.applied(before.operations),
        });
        let text = |limit: Option<Limit>| limit.map(|limit| Rate::from(limit).to_string());
        let (bandwidth, operations) = (text(limits.bytes), text(limits.operations));
        Ok(DiskLimits { disk: id.clone(), bandwidth, operations })
    }
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

    use super::super::DISK;
    use super::super::state::Rest;
    use super::*;
    use crate::config::VmConfig;
    use crate::control::devices::DeviceControl;
    use crate::disks::Disks;

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
        let device = Device::new(id.to_string(), DISK, address, Some(PluggedDisk { disk, block }));
        let plugged = Plugged::new(vec![device], disks, None);
        let is_free = || Image::open(file.path(), ImageOptions::default()).is_ok();
        assert_eq!(plugged.resize(&id, None).unwrap().bytes, 4096);
        assert_eq!(plugged.counts().len(), 1);

        let held = plugged.hold(&id).unwrap();
        plugged.gone(0, Rest::Nothing);
        assert!(plugged.counts().is_empty());
        let unknown = DiskRefusal::Unknown { id: id.clone(), disks: Vec::new() };
        assert_eq!(plugged.resize(&id, None), Err(unknown.clone()));
        assert_eq!(plugged.limit(&id, NewLimits::default()), Err(unknown));
        assert!(plugged.list().len() == 1 && !is_free(), "it is told to have gone too early");
        drop(held);
        assert!(plugged.list().is_empty() && is_free(), "something is left");
    }
}
