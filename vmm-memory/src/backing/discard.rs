//! Discard: pages of guest memory given back to the host.

use std::io;

use rustix::fs::{FallocateFlags, fallocate};

use super::host_memory::HostMemory;
use super::mapping::Advice;

/// Why memory cannot be discarded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum DiscardError {
    #[error("{length} bytes from {offset:#x} on are not within guest memory of {size} bytes")]
    Outside { offset: u64, length: u64, size: u64 },
    #[error("{length} bytes from {offset:#x} on are not whole pages of {page_size} bytes")]
    NotPages { offset: u64, length: u64, page_size: u64 },
    #[error("the host does not take back {length} bytes from {offset:#x} on of guest memory")]
    Host {
        offset: u64,
        length: u64,
        #[source]
        source: io::Error,
    },
}

/// How memory is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// The pages of this process go (`MADV_DONTNEED`).
    Advice,
    /// The file gets a hole, for all who have it mapped (`FALLOC_FL_PUNCH_HOLE`): of pages that belong to a file,
    /// advice would only take this process's view.
    Hole,
}

impl HostMemory {
    /// Gives `length` bytes from `offset` on back to the host, both multiples of [`page_size`](HostMemory::page_size).
    /// Others that use the memory meanwhile read old or new contents, and what they write may be lost. What is read there
    /// afterwards:
    ///
    /// | backing | contents | where the memory goes |
    /// |---|---|---|
    /// | anonymous, memfd | zero | to the host |
    /// | huge pages of a fixed size | zero | to the pool, for anyone; the next touch is a bus error if none is left |
    /// | shared file | zero, in the file too | to its file system, and the host's page cache |
    /// | private file | what the file has | what was copied goes to the host; the page cache keeps what it has of the file |
    ///
    /// # Errors
    /// [`DiscardError`]; with [`DiscardError::Host`] a part may have been given back. File systems that have no holes are
    /// refused by the host (`EOPNOTSUPP`), and so is private locked memory before Linux 5.18 (`EINVAL`).
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), DiscardError> {
        let (size, page_size) = (self.len(), self.page_size());
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(DiscardError::Outside { offset, length, size });
        }
        if !offset.is_multiple_of(page_size) || !length.is_multiple_of(page_size) {
            return Err(DiscardError::NotPages { offset, length, page_size });
        }
        if length == 0 {
            return Ok(());
        }
        self.give_back(offset, length).map_err(|source| DiscardError::Host { offset, length, source })
    }

    /// Whether what was discarded reads as zero: all but what comes from a private file again.
    pub(crate) fn is_zero_when_discarded(&self) -> bool {
        self.means() == Means::Hole || self.file().is_none()
    }

    fn give_back(&self, offset: u64, length: u64) -> io::Result<()> {
        match (self.means(), self.file()) {
            (Means::Hole, Some((file, first))) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // The file has `first` bytes before this memory, and both were checked to be inside of it.
                let offset = first.saturating_add(offset);
                rustix::io::retry_on_intr(|| fallocate(file, flags, offset, length))?;
                Ok(())
            }
            _ => {
                let offset = usize::try_from(offset).map_err(io::Error::other)?;
                let length = usize::try_from(length).map_err(io::Error::other)?;
                self.mapping().advise(offset, length, Advice::Discard)
            }
        }
    }
}
