//! `Qcow2`: an image in qcow2 format, by the crate imago.
//!
//! imago gets files that are open, checked and locked here, and opens none itself: what an image names is the word of whoever has
//! made it. A backing file is the one that the user names as well, and has none in its turn.
//!
//! Lock order: `access` alone. It is held for the time of one request: shared, but by those that free clusters, which others may be
//! about to read.

mod header;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use header::{Header, HeaderError};
use imago::file::File;
use imago::qcow2::Qcow2 as Format;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use vmm_memory::PinnedBuffers;

use super::SECTOR;
use super::image::Image;
use super::storage::{Storage, zeros};

/// Bytes that are copied between guest RAM and the image at once.
const PIECE: usize = 1 << 20;

/// What is behind an image that has not every sector itself.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Sectors one after the other.
    Raw(Arc<Image>),
    /// An image in qcow2 format, without a backing file of its own.
    Qcow2(Arc<Image>),
}

impl Backing {
    /// The file.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        match self {
            Self::Raw(image) | Self::Qcow2(image) => image,
        }
    }

    fn format(&self) -> &'static str {
        match self {
            Self::Raw(_) => "raw",
            Self::Qcow2(_) => "qcow2",
        }
    }
}

/// Why an image cannot be used as one in qcow2 format.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum Qcow2Error {
    #[error("{path:?} is no usable qcow2 image")]
    Header {
        path: PathBuf,
        #[source]
        source: HeaderError,
    },
    #[error(
        "{path:?} has the backing file {name:?}, which is used only if the configuration names it too: \
         set backing and backing_format"
    )]
    NeedsBacking { path: PathBuf, name: String },
    #[error("{path:?} has the backing file {name:?}, and the configuration names another: {given:?}")]
    OtherBacking { path: PathBuf, name: String, given: PathBuf },
    #[error("{path:?} has no backing file; leave out backing = {given:?}")]
    NoBacking { path: PathBuf, given: PathBuf },
    #[error(
        "{path:?} says that its backing file is in the format {format:?}, and the configuration says {given}"
    )]
    OtherFormat { path: PathBuf, format: String, given: &'static str },
    #[error(
        "the backing file {path:?} has a backing file itself, {name:?}; merge them: `qemu-img rebase` or `commit`"
    )]
    Chain { path: PathBuf, name: String },
    #[error("{path:?} has {length} bytes, not even a sector of {SECTOR}")]
    TooSmall { path: PathBuf, length: u64 },
    #[error("cannot read the tables of the qcow2 image {path:?}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the tables of the qcow2 image {path:?} contradict each other")]
    Panicked { path: PathBuf },
}

/// An open image in qcow2 format. Dropped, it has written its tables.
pub struct Qcow2 {
    image: Arc<Image>,
    access: Option<RwLock<FormatAccess<File>>>,
    /// imago has found in the tables what cannot be, and has panicked. What it knows of them since is not to be relied on.
    broken: AtomicBool,
}

impl Qcow2 {
    /// The disk in `image`, which has exactly the backing file that is `backing`.
    ///
    /// # Errors
    /// [`Qcow2Error`].
    pub fn open(image: Arc<Image>, backing: Option<&Backing>) -> Result<Self, Qcow2Error> {
        Self::check(&image, backing)?;
        Self::of(image, backing)
    }

    /// The same of images that somebody else has opened and [checked](Self::check): the name that the image has for its backing file is
    /// not looked for.
    ///
    /// # Errors
    /// [`Qcow2Error`].
    pub fn adopt(image: Arc<Image>, backing: Option<&Backing>) -> Result<Self, Qcow2Error> {
        check_headers(&image, backing)?;
        Self::of(image, backing)
    }

    /// Checks that the disk in `image` has exactly the backing file that is `backing`, and nothing behind that.
    ///
    /// # Errors
    /// [`Qcow2Error`].
    pub fn check(image: &Image, backing: Option<&Backing>) -> Result<(), Qcow2Error> {
        let name = check_headers(image, backing)?;
        let (Some(name), Some(given)) = (name, backing) else { return Ok(()) };
        let beside = image.path().parent().unwrap_or(Path::new("")).join(&name);
        if given.image().is_at(&beside) {
            return Ok(());
        }
        Err(Qcow2Error::OtherBacking {
            path: image.path().to_owned(),
            name,
            given: given.image().path().to_owned(),
        })
    }

    fn of(image: Arc<Image>, backing: Option<&Backing>) -> Result<Self, Qcow2Error> {
        let path = || image.path().to_owned();
        let opened = catch_unwind(AssertUnwindSafe(|| access(&image, backing)));
        let access = opened.map_err(|_| Qcow2Error::Panicked { path: path() })?;
        let access = access.map_err(|source| Qcow2Error::Open { path: path(), source })?;
        let length = access.size();
        let disk = Self { access: Some(RwLock::new(access)), broken: AtomicBool::new(false), image };
        if length < SECTOR {
            return Err(Qcow2Error::TooSmall { path: disk.image.path().to_owned(), length });
        }
        Ok(disk)
    }

    /// Does `act`, unless the tables are known to be wrong; a panic in it makes them so.
    fn guarded<T>(&self, act: impl FnOnce(&RwLock<FormatAccess<File>>) -> io::Result<T>) -> io::Result<T> {
        let broken = || io::Error::other("the tables of the qcow2 image contradict each other");
        let access =
            self.access.as_ref().filter(|_| !self.broken.load(Ordering::Acquire)).ok_or_else(broken)?;
        catch_unwind(AssertUnwindSafe(|| act(access))).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::Release);
            Err(broken())
        })
    }
}

fn read_header(image: &Image) -> Result<Header, Qcow2Error> {
    let [_, file] = image.files();
    Header::read(file).map_err(|source| Qcow2Error::Header { path: image.path().to_owned(), source })
}

/// Checks that there is a backing file if the header says so, and that it is usable as that; returns what the header calls it.
fn check_headers(image: &Image, backing: Option<&Backing>) -> Result<Option<String>, Qcow2Error> {
    let header = read_header(image)?;
    let path = || image.path().to_owned();
    match (&header.backing, backing) {
        (None, None) => {}
        (Some(name), None) => return Err(Qcow2Error::NeedsBacking { path: path(), name: name.clone() }),
        (None, Some(given)) => {
            return Err(Qcow2Error::NoBacking { path: path(), given: given.image().path().to_owned() });
        }
        (Some(_), Some(given)) => check_backing(image, &header, given)?,
    }
    Ok(header.backing)
}

/// Checks that `given` is usable as the backing file that the header names.
fn check_backing(image: &Image, header: &Header, given: &Backing) -> Result<(), Qcow2Error> {
    let path = || image.path().to_owned();
    if let Some(format) = &header.backing_format
        && format != given.format()
    {
        return Err(Qcow2Error::OtherFormat { path: path(), format: format.clone(), given: given.format() });
    }
    let Backing::Qcow2(backing) = given else { return Ok(()) };
    match read_header(backing)?.backing {
        Some(name) => Err(Qcow2Error::Chain { path: backing.path().to_owned(), name }),
        None => Ok(()),
    }
}

fn access(image: &Image, backing: Option<&Backing>) -> io::Result<FormatAccess<File>> {
    let deny = DenyImplicitOpenGate::default;
    let backing = match backing {
        None => None,
        Some(Backing::Raw(image)) => Some(FormatAccess::new(Raw::builder(file(image)?).open(deny())?)),
        Some(Backing::Qcow2(image)) => {
            let builder = Format::<File>::builder(file(image)?).backing(None).data_file(None);
            Some(FormatAccess::new(builder.open(deny())?))
        }
    };
    let builder = Format::<File>::builder(file(image)?).backing(backing).data_file(None);
    Ok(FormatAccess::new(builder.write(!image.is_read_only()).open(deny())?))
}

/// The descriptor of an image for imago. It is one more of the same open file, which stays locked as long as any is open.
fn file(image: &Image) -> io::Result<File> {
    // Through the page cache: of a direct one imago would find out by writing how it is aligned.
    let [_, file] = image.files();
    File::try_from(file.try_clone()?)
}

fn shared(access: &RwLock<FormatAccess<File>>) -> RwLockReadGuard<'_, FormatAccess<File>> {
    access.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone(access: &RwLock<FormatAccess<File>>) -> RwLockWriteGuard<'_, FormatAccess<File>> {
    access.write().unwrap_or_else(PoisonError::into_inner)
}

/// What the version of the format does not have.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

impl Storage for Qcow2 {
    fn read(&self, mut buffers: PinnedBuffers, mut offset: u64) -> io::Result<()> {
        self.guarded(|access| {
            let mut bytes = vec![0; piece(buffers.len())];
            while !buffers.is_empty() {
                let part = bytes.get_mut(..piece(buffers.len())).unwrap_or_default();
                shared(access).read(&mut *part, offset)?;
                offset = offset.saturating_add(buffers.fill_from(part));
            }
            Ok(())
        })
    }

    fn write(&self, mut buffers: PinnedBuffers, mut offset: u64, durable: bool) -> io::Result<()> {
        self.guarded(|access| {
            let mut bytes = vec![0; piece(buffers.len())];
            while !buffers.is_empty() {
                let part = bytes.get_mut(..piece(buffers.len())).unwrap_or_default();
                let count = buffers.drain_to(part);
                shared(access).write(&*part, offset)?;
                offset = offset.saturating_add(count);
            }
            Ok(())
        })?;
        if durable { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.guarded(|access| shared(access).flush())?;
        Storage::flush(&*self.image)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.guarded(|access| alone(access).discard_to_any(offset, length)) {
            // A discard is advice.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<u64> {
        self.guarded(|access| {
            let zeroed = if unmap {
                alone(access).discard_to_zero(offset, length)
            } else {
                shared(access).write_zeroes(offset, length)
            };
            match zeroed {
                Err(error) if is_unsupported(&error) => {
                    let zeros = zeros(length);
                    shared(access).write(zeros, offset).map(|()| zeros.len() as u64)
                }
                result => result.map(|()| length),
            }
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.guarded(|access| Ok(shared(access).size()))
    }
}

fn piece(length: u64) -> usize {
    usize::try_from(length).map_or(PIECE, |length| length.min(PIECE))
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if !self.image.is_read_only()
            && !self.broken.load(Ordering::Acquire)
            && let Err(error) = Storage::flush(self)
        {
            tracing::error!(path = ?self.image.path(), %error, "the tables of a disk cannot be written");
        }
        let access = self.access.take();
        // It writes its tables once more.
        if catch_unwind(AssertUnwindSafe(|| drop(access))).is_err() {
            tracing::error!(path = ?self.image.path(), "the tables of a disk contradict each other");
        }
    }
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2").field("image", &self.image).finish_non_exhaustive()
    }
}
