//! The images of the disks: opened and locked before the machine is built, or by the client that adds a disk to it, and kept through
//! its restarts.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_core::VmEvents;
use vmm_devices::rate_limiter::{Limit, Limits};
use vmm_devices::virtio::block::{
    Backend, Backing, Block, BlockError, BlockOptions, HandedImage, Image, ImageError, ImageOptions, Qcow2,
    Qcow2Error, Throttle,
};

use crate::config::{DeviceId, DiskConfig, DiskFormat, DiskIdentities, Rate, VmConfig};
use crate::control::devices::DeviceError;
use crate::control::roles::DiskFiles;
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
            let backend = Images::open(disk).and_then(Images::backend)?;
            Disk::new(backend, disk, disk.id(place), config.cpu.count)
        };
        // The others have a back end of their own.
        let with_image = config.disk.iter().enumerate().filter(|(_, disk)| disk.vhost_user.is_none());
        let disks: Result<Vec<_>, Failure> = with_image.map(open).collect();
        Ok(Self::new(disks?))
    }
}

/// The images of one disk, open and locked.
pub(crate) struct Images {
    image: Arc<Image>,
    is_qcow2: bool,
    backing: Option<Backing>,
}

impl Images {
    /// Opens and locks what `disk` names. Never in a process with a machine that runs.
    ///
    /// # Errors
    /// It cannot be had.
    pub(crate) fn open(disk: &DiskConfig) -> Result<Self, OpenError> {
        let images = Self::of(disk, |path, options, _| Ok(Image::open(path, options)?))?;
        if images.is_qcow2 {
            Qcow2::check(&images.image, images.backing.as_ref())?;
        }
        Ok(images)
    }

    /// Checks and locks what a client has opened for `disk`.
    ///
    /// # Errors
    /// Something is missing, or is not what the disk needs.
    pub(crate) fn adopt(disk: &DiskConfig, files: DiskFiles) -> Result<Self, OpenError> {
        let DiskFiles { mut image, mut direct, mut backing } = files;
        let images = Self::of(disk, |path, options, which| {
            let (file, direct, what) = match which {
                Which::Image => (image.take(), direct.take(), "the image"),
                Which::Backing => (backing.take(), None, "the backing file"),
            };
            let missing = |what| OpenError::NotGiven { what, path: path.to_owned() };
            let file = file.ok_or_else(|| missing(what))?;
            let direct = match (options.direct, direct) {
                (true, None) => return Err(missing("the direct descriptor of the image")),
                (false, Some(_)) => return Err(OpenError::Unwanted { what: "direct" }),
                (_, direct) => direct,
            };
            let handed = HandedImage { file: File::from(file), direct: direct.map(File::from) };
            Ok(Image::adopt(path, handed, options)?)
        })?;
        if backing.is_some() { Err(OpenError::Unwanted { what: "backing" }) } else { Ok(images) }
    }

    /// The images that `disk` names, as `have` has each of them.
    fn of(
        disk: &DiskConfig,
        mut have: impl FnMut(&Path, ImageOptions, Which) -> Result<Image, OpenError>,
    ) -> Result<Self, OpenError> {
        let mut have = |path: &Path, read_only, which| {
            let options = ImageOptions { read_only, direct: disk.direct };
            have(path, options, which).map(Arc::new)
        };
        // Validation has seen that both are there.
        let path = disk.path.as_deref().unwrap_or(Path::new(""));
        let image = have(path, disk.read_only, Which::Image)?;
        let is_qcow2 = disk.format == Some(DiskFormat::Qcow2);
        let backing = match (&disk.backing, disk.backing_format) {
            _ if !is_qcow2 => None,
            (Some(path), Some(DiskFormat::Raw)) => Some(Backing::Raw(have(path, true, Which::Backing)?)),
            (Some(path), Some(DiskFormat::Qcow2)) => Some(Backing::Qcow2(have(path, true, Which::Backing)?)),
            // One without the other is not valid.
            _ => None,
        };
        Ok(Self { image, is_qcow2, backing })
    }

    /// The identities of all its files.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn identities(&self) -> io::Result<DiskIdentities> {
        let backing = self.backing.as_ref().map(|backing| backing.image().identity()).transpose()?;
        Ok(DiskIdentities { image: self.image.identity()?, backing })
    }

    /// More descriptors of them, for the monitor.
    ///
    /// # Errors
    /// The host has none left.
    pub(crate) fn hand_over(&self) -> io::Result<DiskFiles> {
        let HandedImage { file, direct } = self.image.hand_over()?;
        let backing = self.backing.as_ref().map(|backing| backing.image().hand_over()).transpose()?;
        Ok(DiskFiles {
            image: Some(file.into()),
            direct: direct.map(OwnedFd::from),
            backing: backing.map(|handed| handed.file.into()),
        })
    }

    /// What is behind the disk.
    ///
    /// # Errors
    /// What is in them is not what was said.
    pub(crate) fn backend(self) -> Result<Backend, OpenError> {
        if !self.is_qcow2 {
            return Ok(Backend::Raw(self.image));
        }
        Ok(Backend::Other(Arc::new(Qcow2::adopt(self.image, self.backing.as_ref())?)))
    }
}

/// Which file of a disk.
#[derive(Clone, Copy)]
enum Which {
    Image,
    Backing,
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
    /// The client has not opened it.
    #[error("there is no descriptor of {what} {path:?}")]
    NotGiven {
        /// Which one.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// The client has opened what is not part of it.
    #[error("the disk has no descriptor `{what}`")]
    Unwanted {
        /// What.
        what: &'static str,
    },
}

/// What is in use, or not possible on this file system, is not a mistake of the configuration.
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Image(
                error @ (ImageError::InUse { .. } | ImageError::Lock { .. } | ImageError::NotDirect { .. }),
            ) => Self::host_cannot(error),
            OpenError::Image(error) => Self::bad_input(error),
            error => Self::bad_input(error),
        }
    }
}

impl OpenError {
    /// As whoever adds a disk is told.
    pub(crate) fn device_error(self) -> DeviceError {
        let message = |error: Self| format!("{:#}", anyhow::Error::new(error));
        match self {
            Self::NotGiven { what, path } => {
                DeviceError::NotGiven { what: format!("{what} {}", path.display()) }
            }
            error @ Self::Image(ImageError::InUse { .. }) => DeviceError::InUse { message: message(error) },
            error => DeviceError::BadDisk { message: message(error) },
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
