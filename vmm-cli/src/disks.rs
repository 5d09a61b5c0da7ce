//! The images of the disks: opened and locked before the machine is built, or when a disk is added to it, and kept through its
//! restarts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_core::VmEvents;
use vmm_devices::rate_limiter::{Limit, Limits};
use vmm_devices::virtio::block::{
    Backend, Block, BlockError, BlockOptions, Image, ImageError, ImageOptions, Throttle,
};

use crate::config::{DiskConfig, Rate, VmConfig, disk};
use crate::outcome::Failure;

/// One disk: what is behind it, and how it is configured.
pub(crate) struct Disk {
    image: Arc<Image>,
    config: DiskConfig,
    /// What messages call it, and the guest can ask for.
    name: String,
    queues: u16,
    /// What one life of the machine has used of it, the next one has not.
    throttle: Arc<Throttle>,
}

/// The disks of all lives of a machine, in the order in which a guest finds them.
pub(crate) struct Disks(Mutex<Vec<Entry>>);

struct Entry {
    disk: Arc<Disk>,
    /// The guest is asked to give it back: the next life does not have it.
    leaves: bool,
}

impl Disks {
    /// Opens and locks the images of all disks of `config`.
    ///
    /// # Errors
    /// The first one that cannot be had, by whose it is to mend.
    pub(crate) fn open(config: &VmConfig) -> Result<Self, Failure> {
        let open = |(disk, name): (&DiskConfig, String)| {
            let image = open_image(disk).map_err(image_failure)?;
            let disk = Arc::new(Disk::new(image, disk, name, config.cpu.count)?);
            Ok(Entry { disk, leaves: false })
        };
        let entries: Result<_, Failure> =
            config.disk.iter().zip(disk::names(&config.disk)).map(open).collect();
        Ok(Self(Mutex::new(entries?)))
    }

    /// Those of the machine's next life. What a guest was asked to give back at the end of the last one is let go.
    pub(crate) fn of_next_life(&self) -> Vec<Arc<Disk>> {
        let mut entries = self.lock();
        entries.retain(|entry| !entry.leaves);
        entries.iter().map(|entry| Arc::clone(&entry.disk)).collect()
    }

    /// Keeps one more.
    pub(crate) fn add(&self, disk: Arc<Disk>) {
        self.lock().push(Entry { disk, leaves: false });
    }

    /// The guest is asked to give the disk `name` back.
    pub(crate) fn leaves(&self, name: &str) {
        if let Some(entry) = self.lock().iter_mut().find(|entry| entry.disk.name == name) {
            entry.leaves = true;
        }
    }

    /// Keeps the disk `name` no more.
    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Disk>> {
        let mut entries = self.lock();
        let at = entries.iter().position(|entry| entry.disk.name == name)?;
        Some(entries.remove(at).disk)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens and locks the image of one disk. While a machine runs this is the one place that opens a path.
///
/// # Errors
/// It cannot be had.
pub(crate) fn open_image(disk: &DiskConfig) -> Result<Image, ImageError> {
    Image::open(&disk.path, ImageOptions { read_only: disk.read_only, direct: disk.direct })
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
    /// The disk `name` with what is in `image`, beside `vcpus` vCPUs.
    ///
    /// # Errors
    /// Its limits are none.
    pub(crate) fn new(image: Image, config: &DiskConfig, name: String, vcpus: u16) -> Result<Self, Failure> {
        let limits = Limits { bytes: limit(config.bandwidth)?, operations: limit(config.operations)? };
        Ok(Self {
            image: Arc::new(image),
            config: config.clone(),
            name,
            queues: config.queues(vcpus),
            throttle: Throttle::new(limits),
        })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
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
            name: self.name.clone(),
            read_only: self.config.read_only,
            queues: self.queues,
            engine: self.config.engine.into(),
            throttle: Arc::clone(&self.throttle),
        };
        let made = Block::new(Backend::Raw(Arc::clone(&self.image)), options, events.clone());
        made.map_err(|error: BlockError| Failure::host_cannot(error))
    }
}

fn limit(rate: Option<Rate>) -> Result<Option<Limit>, Failure> {
    rate.map(|rate| rate.limit()).transpose().map_err(Failure::internal)
}
