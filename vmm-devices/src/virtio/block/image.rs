//! `Image`: the file or block device behind a disk, opened, checked and locked once.
//!
//! Its format is what the configuration says. It is never looked for in the contents, which are the guest's: a guest that
//! writes the header of another format gets it back as data, at the next start too.

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{
    AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, ioctl_blkpbszget, ioctl_blksszget, statx,
};
use vmm_core::file_kind;

use super::SECTOR;
use super::lock::{LockHolder, LockRefusal, lock, lock_without_search};

/// What unaligned direct I/O is assumed to need where the kernel does not say it (before Linux 6.1).
const ASSUMED_ALIGNMENT: u64 = 4096;

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// It is only read. Others may read it too.
    pub read_only: bool,
    /// The host's page cache is passed by, for requests that are aligned as the host needs it.
    pub direct: bool,
}

/// The descriptors of an image that somebody else has opened.
#[derive(Debug)]
pub struct HandedImage {
    /// The file or device, through the host's page cache.
    pub file: File,
    /// The same past the page cache, exactly of an image that is [direct](ImageOptions::direct).
    pub direct: Option<File>,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum ImageError {
    #[error("cannot open {path:?} for {purpose}")]
    Open {
        path: PathBuf,
        purpose: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} is {kind}; a disk is a regular file or a block device")]
    NotADisk { path: PathBuf, kind: &'static str },
    #[error("{path:?} has become another file while it was opened")]
    Replaced { path: PathBuf },
    #[error("{path:?} has {length} bytes, not even a sector of {SECTOR}; make it larger: `truncate -s SIZE`")]
    TooSmall { path: PathBuf, length: u64 },
    #[error(
        "{path:?} cannot be opened without the host's page cache (O_DIRECT), which its file system does not support"
    )]
    NotDirect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} is in use by {holder}, which excludes {purpose}")]
    InUse { path: PathBuf, holder: LockHolder, purpose: &'static str },
    #[error("{path:?} cannot be locked, so that nobody else writes to it")]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the descriptor of {path:?} {problem}")]
    Descriptor { path: PathBuf, problem: &'static str },
    #[error("the two descriptors of {path:?} are of two files")]
    TwoFiles { path: PathBuf },
    #[error("cannot look at {path:?}")]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Sizes of blocks, in bytes, of which each is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// What the guest takes for a block: partition tables count in it. A sector, but for block devices with larger ones.
    pub logical: u32,
    /// What the host writes as a whole.
    pub physical: u32,
}

/// What direct I/O needs.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    memory: u64,
    offset: u64,
}

/// An open and locked image. The lock ends with it.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    /// For what is not aligned, where `file` is direct. The kernel keeps both in step.
    cached: Option<(File, Alignment)>,
    blocks: Blocks,
    read_only: bool,
    is_device: bool,
    /// The errno with which what was written was lost, or 0; see [`flushed`](Self::flushed).
    lost: AtomicI32,
}

impl Image {
    /// Opens `path`. What is neither a regular file nor a block device is refused without being opened: a FIFO would
    /// wait, a device may act.
    ///
    /// # Errors
    /// Any [`ImageError`].
    pub fn open(path: &Path, options: ImageOptions) -> Result<Self, ImageError> {
        let open = |flags| open_as(path, options.read_only, flags);
        let purpose = options.purpose();
        let failed = |source| ImageError::Open { path: path.to_owned(), purpose, source };
        check_kind(path, path.metadata().map_err(failed)?.file_type())?;
        let file = open(OFlags::empty()).map_err(failed)?;
        let kind = file.metadata().map_err(|source| ImageError::Look { path: path.to_owned(), source })?;
        check_kind(path, kind.file_type())?;
        lock(&file, !options.read_only).map_err(|refusal| refused(path, options, refusal))?;
        let direct = options.direct.then(|| open(OFlags::DIRECT)).transpose();
        let direct = direct.map_err(|source| ImageError::NotDirect { path: path.to_owned(), source })?;
        Self::locked(path, HandedImage { file, direct }, options).map_err(|error| match error {
            ImageError::TwoFiles { path } => ImageError::Replaced { path },
            other => other,
        })
    }

    /// Takes what somebody else has opened, whose `path` is only for messages. It is checked as what is opened here, and locked; no
    /// path is looked at.
    ///
    /// # Errors
    /// Any [`ImageError`].
    pub fn adopt(path: &Path, handed: HandedImage, options: ImageOptions) -> Result<Self, ImageError> {
        let HandedImage { file, direct } = &handed;
        let look = |source| ImageError::Look { path: path.to_owned(), source };
        check_kind(path, file.metadata().map_err(look)?.file_type())?;
        for (file, is_direct) in std::iter::once((file, false)).chain(direct.iter().map(|file| (file, true)))
        {
            let flags = fcntl_getfl(file).map_err(|errno| look(errno.into()))?;
            if let Some(problem) = problem_of(flags, options.read_only, is_direct) {
                return Err(ImageError::Descriptor { path: path.to_owned(), problem });
            }
        }
        lock_without_search(file, !options.read_only).map_err(|refusal| refused(path, options, refusal))?;
        Self::locked(path, handed, options)
    }

    /// Of a file that is locked already.
    fn locked(path: &Path, handed: HandedImage, options: ImageOptions) -> Result<Self, ImageError> {
        let HandedImage { file, direct } = handed;
        let look = |source| ImageError::Look { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(look)?;
        let is_device = metadata.file_type().is_block_device();
        let blocks = blocks(&file, is_device).map_err(look)?;
        let mut image = Self::with(file, path.to_owned(), blocks);
        (image.read_only, image.is_device) = (options.read_only, is_device);
        if let Some(direct) = direct {
            let same = direct.metadata().map_err(look)?;
            if (same.dev(), same.ino()) != (metadata.dev(), metadata.ino()) {
                return Err(ImageError::TwoFiles { path: path.to_owned() });
            }
            let alignment = alignment(&direct);
            // The lock stays with the one that was opened first.
            let cached = std::mem::replace(&mut image.file, direct);
            image.cached = Some((cached, alignment));
        }
        match image.length().map_err(look)? {
            length if length < SECTOR => Err(ImageError::TooSmall { path: path.to_owned(), length }),
            _ => Ok(image),
        }
    }

    /// More descriptors of its open files, for whoever is to have it from this process.
    ///
    /// # Errors
    /// The host has none left.
    pub fn hand_over(&self) -> io::Result<HandedImage> {
        let [first, second] = self.files();
        let direct = self.cached.is_some().then(|| first.try_clone()).transpose()?;
        Ok(HandedImage { file: second.try_clone()?, direct })
    }

    /// The device and the number of its file there, which no other file has.
    ///
    /// # Errors
    /// The host cannot say it.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Any file, unchecked.
    #[cfg(all(test, not(loom)))]
    pub(super) fn of(file: File) -> Self {
        Self::with(file, PathBuf::new(), Blocks { logical: 512, physical: 512 })
    }

    fn with(file: File, path: PathBuf, blocks: Blocks) -> Self {
        let lost = AtomicI32::new(0);
        Self { path, file, cached: None, blocks, read_only: false, is_device: false, lost }
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it must not be written to.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its blocks.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Its length in bytes now.
    ///
    /// # Errors
    /// The host cannot say it.
    pub fn length(&self) -> io::Result<u64> {
        // Of a block device, metadata has none. The position is used by nobody.
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Whether `path` leads to this file or device.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let own = self.file.metadata().map(identity);
        own.is_ok_and(|own| path.metadata().is_ok_and(|found| identity(found) == own))
    }

    /// Whether it is a block device, whose length is not chosen here.
    pub(super) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Gives a file another length; what it gains reads as zero.
    pub(super) fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    /// Its descriptors: the first for what [`is_aligned`](Self::is_aligned), the second for the rest.
    pub(super) fn files(&self) -> [&File; 2] {
        [&self.file, self.cached.as_ref().map_or(&self.file, |(file, _)| file)]
    }

    /// What a flush comes to that the host has ended with `result`.
    ///
    /// The kernel says once a descriptor that it could not write something, and then forgets both (fsync(2)): the next flush,
    /// of another queue or of the next start of the guest, would succeed without it. So no flush of this image succeeds after
    /// one that has failed.
    pub(super) fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result
            && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECANCELED))
        {
            self.lose(error);
        }
        match self.lost.load(Ordering::Acquire) {
            0 => result,
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// What a durable write comes to. The error of one may be that of what was written before.
    pub(super) fn wrote_durably<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            if error.raw_os_error() == Some(libc::EIO) {
                self.lose(error);
            }
        })
    }

    fn lose(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        // The first one stays.
        let _ = self.lost.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether a request can go past the page cache; always, of an image that does not.
    pub(super) fn is_aligned(&self, offset: u64, buffers: impl IntoIterator<Item = (u64, u64)>) -> bool {
        let Some((_, Alignment { memory, offset: unit })) = &self.cached else { return true };
        let is_aligned =
            |(address, length): (u64, u64)| address.is_multiple_of(*memory) && length.is_multiple_of(*unit);
        offset.is_multiple_of(*unit) && buffers.into_iter().all(is_aligned)
    }
}

impl ImageOptions {
    /// What it is opened for.
    fn purpose(self) -> &'static str {
        if self.read_only { "reading" } else { "reading and writing" }
    }
}

/// What the lock of an image came to.
fn refused(path: &Path, options: ImageOptions, refusal: LockRefusal) -> ImageError {
    let path = path.to_owned();
    match refusal {
        LockRefusal::Held(holder) => ImageError::InUse { path, holder, purpose: options.purpose() },
        LockRefusal::System(source) => ImageError::Lock { path, source },
    }
}

/// What is wrong with a descriptor with these flags. They are of whoever has opened it, and are left alone.
fn problem_of(flags: OFlags, read_only: bool, is_direct: bool) -> Option<&'static str> {
    let mode = flags & OFlags::RWMODE;
    let problems = [
        (flags.contains(OFlags::PATH), "is of a path alone (O_PATH)"),
        (
            read_only && mode != OFlags::RDONLY,
            "is not for reading alone, as a disk that is only read needs it",
        ),
        (
            !read_only && mode != OFlags::RDWR,
            "is not for reading and writing; a disk that is only read says so",
        ),
        (flags.contains(OFlags::APPEND), "appends whatever is written (O_APPEND)"),
        (flags.contains(OFlags::NONBLOCK), "does not wait (O_NONBLOCK)"),
        (
            is_direct && !flags.contains(OFlags::DIRECT),
            "that is to pass the page cache by does not (O_DIRECT)",
        ),
        (!is_direct && flags.contains(OFlags::DIRECT), "passes the page cache by (O_DIRECT), and is not to"),
    ];
    problems.into_iter().find_map(|(is_there, problem)| is_there.then_some(problem))
}

fn check_kind(path: &Path, kind: FileType) -> Result<(), ImageError> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(ImageError::NotADisk { path: path.to_owned(), kind: file_kind(kind) })
}

/// Opens without waiting, should the path have become a FIFO meanwhile.
fn open_as(path: &Path, read_only: bool, flags: OFlags) -> io::Result<File> {
    let wait_not = OFlags::NONBLOCK | OFlags::NOCTTY | flags;
    #[expect(clippy::cast_possible_wrap, reason = "flags")]
    let custom = wait_not.bits() as i32;
    let file = OpenOptions::new().read(true).write(!read_only).custom_flags(custom).open(path)?;
    // Reads and writes of io_uring are to wait for a block device.
    fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
    Ok(file)
}

fn blocks(file: &File, is_device: bool) -> io::Result<Blocks> {
    if is_device {
        return Ok(Blocks { logical: ioctl_blksszget(file)?, physical: ioctl_blkpbszget(file)? });
    }
    let sector = u32::try_from(SECTOR).unwrap_or(u32::MAX);
    let whole = u32::try_from(file.metadata()?.blksize()).unwrap_or(sector);
    let physical = if whole.is_power_of_two() { whole.clamp(sector, 1 << 16) } else { sector };
    Ok(Blocks { logical: sector, physical })
}

fn alignment(direct: &File) -> Alignment {
    let found = statx(direct, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let known = found
        .filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && found.stx_dio_offset_align != 0);
    known.map_or(Alignment { memory: ASSUMED_ALIGNMENT, offset: ASSUMED_ALIGNMENT }, |found| Alignment {
        memory: found.stx_dio_mem_align.max(1).into(),
        offset: found.stx_dio_offset_align.into(),
    })
}
