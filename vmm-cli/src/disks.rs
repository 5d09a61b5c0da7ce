//! The images of the disks: opened and locked before the machine is built, and kept through its restarts.

use std::path::Path;
use std::sync::Arc;

use vmm_core::VmEvents;
use vmm_devices::rate_limiter::{Limit, Limits};
use vmm_devices::virtio::block::{
    Backend, Backing, Block, BlockError, BlockOptions, Image, ImageError, ImageOptions, Qcow2, Throttle,
};

use crate::config::{DiskConfig, DiskFormat, DiskId, Rate, VmConfig};
use crate::outcome::Failure;

/// One disk: what is behind it, and how it is configured.
pub(crate) struct Disk {
    backend: Backend,
    config: DiskConfig,
    /// What messages call it, and the guest can ask for.
    id: DiskId,
    queues: u16,
    /// What one life of the machine has used of it, the next one has not.
    throttle: Arc<Throttle>,
}

/// Opens and locks the images of all disks.
///
/// # Errors
/// The first one that cannot be had, by whose it is to mend.
pub(crate) fn open(config: &VmConfig) -> Result<Vec<Disk>, Failure> {
    let open = |(index, disk): (usize, &DiskConfig)| {
        let limits = Limits { bytes: limit(disk.bandwidth)?, operations: limit(disk.operations)? };
        Ok(Disk {
            backend: backend(disk)?,
            config: disk.clone(),
            id: disk.id(index),
            queues: disk.queues(config.cpu.count),
            throttle: Throttle::new(limits),
        })
    };
    config.disk.iter().enumerate().map(open).collect()
}

/// What is behind a disk, in the format that the configuration says.
fn backend(disk: &DiskConfig) -> Result<Backend, Failure> {
    let open = |path: &Path, read_only| {
        let options = ImageOptions { read_only, direct: disk.direct };
        Image::open(path, options).map(Arc::new).map_err(image_failure)
    };
    let image = open(&disk.path, disk.read_only)?;
    if disk.format == DiskFormat::Raw {
        return Ok(Backend::Raw(image));
    }
    let backing = match (&disk.backing, disk.backing_format) {
        (Some(path), Some(DiskFormat::Raw)) => Some(Backing::Raw(open(path, true)?)),
        (Some(path), Some(DiskFormat::Qcow2)) => Some(Backing::Qcow2(open(path, true)?)),
        // One without the other is not valid.
        _ => None,
    };
    let image = Qcow2::open(image, backing.as_ref()).map_err(Failure::bad_input)?;
    Ok(Backend::Other(Arc::new(image)))
}

/// What is in use, or not possible on this file system, is not a mistake of the configuration.
fn image_failure(error: ImageError) -> Failure {
    match error {
        ImageError::InUse { .. } | ImageError::Lock { .. } | ImageError::NotDirect { .. } => {
            Failure::host_cannot(error)
        }
        _ => Failure::bad_input(error),
    }
}

impl Disk {
    /// What it is called.
    pub(crate) fn id(&self) -> &DiskId {
        &self.id
    }

    /// The device of one life of the machine.
    ///
    /// # Errors
    /// The host does not give what it takes.
    pub(crate) fn device(&self, events: &VmEvents) -> Result<Block, Failure> {
        let options = BlockOptions {
            name: self.id.to_string(),
            read_only: self.config.read_only,
            queues: self.queues,
            engine: self.config.engine.into(),
            throttle: Arc::clone(&self.throttle),
        };
        let made = Block::new(self.backend.clone(), options, events.clone());
        made.map_err(|error: BlockError| Failure::host_cannot(error))
    }
}

fn limit(rate: Option<Rate>) -> Result<Option<Limit>, Failure> {
    rate.map(|rate| rate.limit()).transpose().map_err(Failure::internal)
}
