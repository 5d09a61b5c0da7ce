//! The images of the disks: opened and locked before the machine is built, or when a disk is added to it, and kept through its
//! restarts.

use std::path::Path;
use std::sync::Arc;

use vmm_core::VmEvents;
use vmm_devices::rate_limiter::{Limit, Limits};
use vmm_devices::virtio::block::{
    Backend, Backing, Block, BlockError, BlockOptions, Image, ImageError, ImageOptions, Qcow2, Qcow2Error,
    Throttle,
};

use crate::config::{DeviceId, DiskConfig, DiskFormat, Rate, VmConfig};
use crate::kept::{Kept, Named};
use crate::outcome::Failure;

/// One disk: what is behind it, and how it is configured.
pub(crate) struct Disk {
    backend: Backend,
    config: DiskConfig,
    /// What messages call it, and the guest can ask for.
    id: DeviceId,
    queues: u16,
    /// What one life of the machine has used of it, the next one has not.
    throttle: Arc<Throttle>,
}

/// The disks of all lives of a machine.
pub(crate) type Disks = Kept<Disk>;

impl Disks {
    /// Opens and locks the images of all disks of `config`.
    ///
    /// # Errors
    /// The first one that cannot be had, by whose it is to mend.
    pub(crate) fn open(config: &VmConfig) -> Result<Self, Failure> {
        let open = |(place, disk): (usize, &DiskConfig)| {
            Disk::new(self::open(disk)?, disk, disk.id(place), config.cpu.count)
        };
        // The others have a back end of their own.
        let with_image = config.disk.iter().enumerate().filter(|(_, disk)| disk.vhost_user.is_none());
        let disks: Result<Vec<_>, Failure> = with_image.map(open).collect();
        Ok(Self::new(disks?))
    }
}

/// Opens and locks the image of one disk. While a machine runs this is the one place that opens a path.
///
/// # Errors
/// It cannot be had.
pub(crate) fn open(disk: &DiskConfig) -> Result<Backend, OpenError> {
    let open = |path: &Path, read_only| {
        let options = ImageOptions { read_only, direct: disk.direct };
        Image::open(path, options).map(Arc::new)
    };
    // Validation has seen that both are there.
    let path = disk.path.as_deref().unwrap_or(Path::new(""));
    let image = open(path, disk.read_only)?;
    if disk.format != Some(DiskFormat::Qcow2) {
        return Ok(Backend::Raw(image));
    }
    let backing = match (&disk.backing, disk.backing_format) {
        (Some(path), Some(DiskFormat::Raw)) => Some(Backing::Raw(open(path, true)?)),
        (Some(path), Some(DiskFormat::Qcow2)) => Some(Backing::Qcow2(open(path, true)?)),
        // One without the other is not valid.
        _ => None,
    };
    Ok(Backend::Other(Arc::new(Qcow2::open(image, backing.as_ref())?)))
}

/// Why the image of a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its file, or that behind it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What is in it.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
}

/// What is in use, or not possible on this file system, is not a mistake of the configuration.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Image(
                error @ (ImageError::InUse { .. } | ImageError::Lock { .. } | ImageError::NotDirect { .. }),
            ) => Self::host_cannot(error),
            OpenError::Image(error) => Self::bad_input(error),
            OpenError::Qcow2(error) => Self::bad_input(error),
        }
    }
}

impl Disk {
    /// The disk `id` with what is in `backend`, beside `vcpus` vCPUs.
    ///
    /// # Errors
    /// Its limits are none.
    pub(crate) fn new(
        backend: Backend,
        config: &DiskConfig,
        id: DeviceId,
        vcpus: u16,
    ) -> Result<Self, Failure> {
        let limits = Limits { bytes: limit(config.bandwidth)?, operations: limit(config.operations)? };
        Ok(Self {
            backend,
            config: config.clone(),
            id,
            queues: config.queues(vcpus),
            throttle: Throttle::new(limits),
        })
    }

    /// How it is configured.
    pub(crate) fn config(&self) -> &DiskConfig {
        &self.config
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

impl Named for Disk {
    fn id(&self) -> &DeviceId {
        &self.id
    }
}

fn limit(rate: Option<Rate>) -> Result<Option<Limit>, Failure> {
    rate.map(|rate| rate.limit()).transpose().map_err(Failure::internal)
}
