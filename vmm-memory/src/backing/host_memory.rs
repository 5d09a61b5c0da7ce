//! `HostMemory`: host memory for the guest, mapped as long as this value lives.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::descriptor::{self, Part};
use super::discard::Means;
use super::mapping::{Advice, Mapping, Source};
use super::prefault::prefault;
use super::{Backing, BackingError, BackingKind, HugePages};
use crate::PAGE;
use crate::dirty::DirtyMap;

/// Host addresses begin at a multiple of this, so that they can be huge pages wherever the guest's addresses can.
const HUGE: u64 = 2 << 20;

/// Memory of this process for the guest, readable and writable. On each side are at least 64 KiB of addresses at which
/// nothing is and nothing comes, so that an access beyond it is a fault and not a write to something else.
///
/// Its address is a multiple of its page size, and of 2 MiB if it is as large as that. It is what the guest writes to: nobody
/// has references into it. Dropped, it is unmapped; whoever was given the address, KVM included, has to be done with it.
///
/// # What can still end the process
///
/// A touch that the host cannot serve is a bus error (SIGBUS), for the guest's touches a failing `KVM_RUN`. What could be
/// refused was: a file that is too short, a pool with too few huge pages. A memfd keeps its size, which is sealed. What
/// remains is for the one who provides it: a file that somebody makes shorter while it is mapped, a shared file with holes
/// on a file system that becomes full (prefault it), an I/O error below a file, a host without memory (the kernel ends a
/// process), and huge pages that were discarded and are not in the pool any more.
#[derive(Debug)]
pub struct HostMemory {
    /// Unmapped before the file is closed.
    mapping: Mapping,
    file: Option<(Arc<File>, u64)>,
    page_size: u64,
    means: Means,
    /// What devices and loaders write. Of the memory and not of a region: a request that holds an old region of memory that
    /// stays is heard as well.
    dirty: Arc<DirtyMap>,
}

impl HostMemory {
    /// Private memory in small pages, none of them touched.
    ///
    /// # Errors
    /// Any [`BackingError`].
    pub fn anonymous(size: u64) -> Result<Self, BackingError> {
        Self::reserve(&Backing::default(), size)
    }

    /// Makes `size` bytes as `backing` describes them: a multiple of the page size, not 0. Without `prefault` no page of it is
    /// touched.
    ///
    /// # Errors
    /// Any [`BackingError`]; nothing is left of it then.
    pub fn reserve(backing: &Backing, size: u64) -> Result<Self, BackingError> {
        Self::reserve_unless(backing, size, &|| false)
    }

    /// The same, given up when `stop` is true; it is asked while pages are made ahead of their use, some hundredths of a
    /// second apart, by several threads.
    ///
    /// # Errors
    /// Any [`BackingError`], [`BackingError::Stopped`] after a stop; nothing is left of it then.
    pub fn reserve_unless(
        backing: &Backing,
        size: u64,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, BackingError> {
        let memory = Self::map(backing, size)?;
        memory.settle(backing)?;
        memory.populate_if(backing.prefault, stop)?;
        Ok(memory)
    }

    /// Makes this memory, which was reserved as `backing` says, again what it was then: what was written to it is gone, unless that is
    /// in a shared file. Its addresses stay, and its descriptor; pages that were locked are so again when they are there. A stop is as
    /// in [`reserve_unless`](Self::reserve_unless).
    ///
    /// # Errors
    /// Any [`BackingError`]; it is to be dropped then.
    pub fn renew(&mut self, backing: &Backing, stop: &(dyn Fn() -> bool + Sync)) -> Result<(), BackingError> {
        let size = self.len();
        let keeps = match &backing.kind {
            BackingKind::File { file, shared, offset } => {
                // Somebody may have made it shorter.
                let part = Part { offset: *offset, size, shared: *shared };
                descriptor::check(file, part, backing.huge_pages)?;
                *shared
            }
            BackingKind::Anonymous | BackingKind::Memfd => false,
        };
        if !keeps {
            self.discard(0, size).map_err(|source| BackingError::Renew { size, source })?;
        }
        if self.page_size != PAGE {
            // Only what is mapped anew sets pages of the pool aside, or says that there are too few.
            let placed = self.mapping.place(self.source());
            placed.map_err(|source| map_error(self.file.as_ref(), self.page_size, size, source))?;
            self.settle(backing)?;
        }
        self.populate_if(backing.prefault, stop)
    }

    /// Tells the kernel what `backing` says about memory that was just mapped.
    fn settle(&self, backing: &Backing) -> Result<(), BackingError> {
        if backing.huge_pages == HugePages::Transparent {
            self.advise(Advice::HugePages)?;
        }
        if !backing.dump {
            self.advise(Advice::DontDump)?;
        }
        // Before pages are made: a limit is to be met at once.
        if backing.lock && self.page_size == PAGE {
            let refused = |source| BackingError::Lock { size: self.len(), limit: lock_limit(), source };
            self.mapping.lock().map_err(refused)?;
        }
        Ok(())
    }

    fn populate_if(&self, wanted: bool, stop: &(dyn Fn() -> bool + Sync)) -> Result<(), BackingError> {
        if !wanted {
            return Ok(());
        }
        prefault(&self.mapping, 0..self.len(), self.page_size, stop)
    }

    /// What is mapped here.
    fn source(&self) -> Source<'_> {
        match &self.file {
            None => Source::Anonymous,
            Some((file, offset)) if self.means == Means::Hole => Source::Shared(file.as_fd(), *offset),
            Some((file, offset)) => {
                Source::Private { file: file.as_fd(), offset: *offset, reserve: self.page_size != PAGE }
            }
        }
    }

    fn map(backing: &Backing, size: u64) -> Result<Self, BackingError> {
        let fixed = backing.huge_pages.fixed_size();
        check_size(size, fixed.unwrap_or(PAGE))?;
        let (file, page_size, shared) = match &backing.kind {
            BackingKind::Anonymous if fixed.is_none() => (None, PAGE, false),
            BackingKind::Anonymous | BackingKind::Memfd => {
                let file = Arc::new(descriptor::memfd(size, backing.huge_pages)?);
                (Some((file, 0)), fixed.unwrap_or(PAGE), true)
            }
            BackingKind::File { file, shared, offset } => {
                let part = Part { offset: *offset, size, shared: *shared };
                let page_size = descriptor::check(file, part, backing.huge_pages)?;
                check_size(size, page_size)?;
                (Some((Arc::clone(file), *offset)), page_size, *shared)
            }
        };
        let align = if size >= HUGE { page_size.max(HUGE) } else { page_size };
        let addresses = |source| BackingError::Addresses { size, source };
        let too_large = |_| addresses(io::Error::from_raw_os_error(libc::ENOMEM));
        let length = usize::try_from(size).map_err(too_large)?;
        let mapping =
            Mapping::reserve(length, usize::try_from(align).map_err(too_large)?).map_err(addresses)?;
        let means = if shared { Means::Hole } else { Means::Advice };
        let memory = Self { mapping, file, page_size, means, dirty: Arc::new(DirtyMap::new(size)) };
        let placed = memory.mapping.place(memory.source());
        placed.map_err(|source| map_error(memory.file.as_ref(), page_size, size, source))?;
        Ok(memory)
    }

    /// The first address. It is valid for [`len`](Self::len) bytes, as long as this value lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.start()
    }

    /// Bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    #[must_use]
    pub fn len(&self) -> u64 {
        self.mapping.length() as u64
    }

    /// What is mapped, and from which byte on: the memfd or the file. `None` for anonymous memory.
    #[must_use]
    pub fn file(&self) -> Option<(&File, u64)> {
        self.file.as_ref().map(|(file, offset)| (&**file, *offset))
    }

    /// The file that others who have it share the memory by.
    pub(crate) fn shared_file(&self) -> Option<(Arc<File>, u64)> {
        self.file.clone().filter(|_| self.means == Means::Hole)
    }

    /// Size of the pages in bytes: the unit of [`discard`](Self::discard). Small ones where the kernel puts them together to
    /// huge ones.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Makes the pages of `part` ahead of their use.
    pub(crate) fn populate(&self, part: Range<u64>) -> Result<(), BackingError> {
        prefault(&self.mapping, part, self.page_size, &|| false)
    }

    /// Makes `length` bytes from `offset` on readable without a fault, if the kernel can (Linux 5.14): zeros where nothing has
    /// been written, without memory for them.
    pub(crate) fn prepare_read(&self, offset: u64, length: u64) {
        let part = usize::try_from(offset).and_then(|offset| Ok((offset, usize::try_from(length)?)));
        if let Ok((offset, length)) = part {
            // Without it whoever reads takes the faults.
            let _ = self.mapping.advise(offset, length, Advice::PopulateRead);
        }
    }

    pub(crate) fn dirty(&self) -> &Arc<DirtyMap> {
        &self.dirty
    }

    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(super) fn means(&self) -> Means {
        self.means
    }

    fn advise(&self, advice: Advice) -> Result<(), BackingError> {
        let advised = self.mapping.advise(0, self.mapping.length(), advice);
        advised.map_err(|source| BackingError::Advice { advice: advice.name(), source })
    }
}

fn check_size(size: u64, page_size: u64) -> Result<(), BackingError> {
    if size == 0 || !size.is_multiple_of(page_size) {
        return Err(BackingError::BadSize { size, page_size });
    }
    Ok(())
}

fn map_error(file: Option<&(Arc<File>, u64)>, page_size: u64, size: u64, source: io::Error) -> BackingError {
    if page_size != PAGE && source.raw_os_error() == Some(libc::ENOMEM) {
        let needed = size.checked_div(page_size).unwrap_or(0);
        let available = descriptor::available_huge_pages(page_size);
        return BackingError::HugePages { size, page_size, needed, available, source };
    }
    let name = file.map_or_else(|| "nothing".to_owned(), |(file, _)| descriptor::name(file));
    BackingError::Map { name, size, source }
}

/// The limit of locked memory, for a message.
fn lock_limit() -> String {
    getrlimit(Resource::Memlock).current.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}

#[cfg(test)]
mod tests;
