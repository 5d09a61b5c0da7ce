//! The backings of guest memory beside the bare system calls: reserved, prefaulted, discarded, and what is left then.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_memory::{Backing, BackingKind, HostMemory, HugePages};

use crate::bench::raw_mapping::Mapping;

/// A backing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// Private memory in small pages.
    Anonymous,
    /// Private memory with advice for transparent huge pages.
    Transparent,
    /// A memfd in small pages.
    Memfd,
    /// A file that is written to, in the directory for temporary files.
    SharedFile,
    /// The same, copied.
    PrivateFile,
    /// A memfd in pages of 2 MiB.
    Huge2M,
    /// A memfd in pages of 1 GiB.
    Huge1G,
}

/// What one round has given.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// From nothing to memory, no page touched.
    pub reserve: Duration,
    /// The same with every page there.
    pub prefault: Duration,
    /// Giving every page back.
    pub discard: Duration,
    /// Bytes that are still held then.
    pub left: u64,
}

impl Measured {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Anonymous,
        Self::Transparent,
        Self::Memfd,
        Self::SharedFile,
        Self::PrivateFile,
        Self::Huge2M,
        Self::Huge1G,
    ];

    /// What `vmm-cli run` is told to have it.
    #[must_use]
    pub fn flags(self, file: &str) -> Vec<String> {
        let flags = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        match self {
            Self::Anonymous => flags(&[]),
            Self::Transparent => flags(&["--huge-pages", "transparent"]),
            Self::Memfd => flags(&["--memory-backing", "memfd"]),
            Self::SharedFile => flags(&["--memory-backing", &format!("shared-file={file}")]),
            Self::PrivateFile => flags(&["--memory-backing", &format!("private-file={file}")]),
            Self::Huge2M => flags(&["--huge-pages", "2M"]),
            Self::Huge1G => flags(&["--huge-pages", "1G"]),
        }
    }

    /// Of its pages, in bytes, if it has its own.
    #[must_use]
    pub fn huge_page_size(self) -> Option<u64> {
        self.huge_pages().fixed_size()
    }

    fn huge_pages(self) -> HugePages {
        match self {
            Self::Transparent => HugePages::Transparent,
            Self::Huge2M => HugePages::Size2M,
            Self::Huge1G => HugePages::Size1G,
            Self::Anonymous | Self::Memfd | Self::SharedFile | Self::PrivateFile => HugePages::None,
        }
    }

    /// Why this host cannot have `size` bytes of it.
    #[must_use]
    pub fn missing(self, size: u64) -> Option<String> {
        let page_size = self.huge_page_size()?;
        let needed = size.div_ceil(page_size);
        let free = pool(page_size, "free_hugepages");
        (free < needed).then(|| format!("{needed} free huge pages of {page_size} bytes, there are {free}"))
    }

    /// By this project's own code.
    ///
    /// # Errors
    ///
    /// The host does not give it.
    pub fn own(self, size: u64) -> Result<Round> {
        let file = Arc::new(sparse_file(size)?);
        let kind = match self {
            Self::Anonymous | Self::Transparent => BackingKind::Anonymous,
            Self::Memfd | Self::Huge2M | Self::Huge1G => BackingKind::Memfd,
            Self::SharedFile | Self::PrivateFile => {
                BackingKind::File { file, shared: self == Self::SharedFile, offset: 0 }
            }
        };
        let backing = Backing { huge_pages: self.huge_pages(), ..Backing::new(kind) };
        let (reserve, memory) = timed(|| HostMemory::reserve(&backing, size))?;
        drop(memory);
        let before = resident()?;
        let (prefault, memory) =
            timed(|| HostMemory::reserve(&Backing { prefault: true, ..backing.clone() }, size))?;
        let (discard, ()) = timed(|| memory.discard(0, size))?;
        let left = self.held(memory.file().map(|(file, _)| file), before)?;
        Ok(Round { reserve, prefault, discard, left })
    }

    /// By the bare system calls, on one thread.
    ///
    /// # Errors
    ///
    /// The host does not give it.
    pub fn raw(self, size: u64) -> Result<Round> {
        let (reserve, memory) = timed(|| self.raw_reserve(size))?;
        drop(memory);
        let before = resident()?;
        let (prefault, (mapping, file)) = timed(|| {
            let (mapping, file) = self.raw_reserve(size)?;
            mapping.populate()?;
            Ok::<_, anyhow::Error>((mapping, file))
        })?;
        let (discard, ()) = timed(|| match &file {
            Some(file) if self != Self::PrivateFile => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(file.as_fd(), flags, 0, size.cast_signed()).context("fallocate")
            }
            _ => mapping.discard().context("madvise"),
        })?;
        let left = self.held(file.as_ref(), before)?;
        Ok(Round { reserve, prefault, discard, left })
    }

    fn raw_reserve(self, size: u64) -> Result<(Mapping, Option<File>)> {
        let length = usize::try_from(size)?;
        let memfd = |flags| -> Result<File> {
            let file = File::from(memfd_create(c"raw", MFdFlags::MFD_CLOEXEC | flags)?);
            file.set_len(size)?;
            Ok(file)
        };
        let file = match self {
            Self::Anonymous | Self::Transparent => {
                let mapping = Mapping::anonymous(length)?;
                if self == Self::Transparent {
                    mapping.prefer_huge_pages()?;
                }
                return Ok((mapping, None));
            }
            Self::SharedFile | Self::PrivateFile => sparse_file(size)?,
            Self::Memfd => memfd(MFdFlags::empty())?,
            Self::Huge2M => memfd(MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?,
            Self::Huge1G => memfd(MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB)?,
        };
        let map = if self == Self::PrivateFile { Mapping::private } else { Mapping::shared };
        Ok((map(file.as_raw_fd(), length)?, Some(file)))
    }

    /// Bytes that memory with this `file` holds, in a process that had `before` resident without it.
    fn held(self, file: Option<&File>, before: u64) -> Result<u64> {
        if let Some(page_size) = self.huge_page_size() {
            return Ok((pool(page_size, "nr_hugepages") - pool(page_size, "free_hugepages")) * page_size);
        }
        let blocks = file.map(|file| Ok::<_, anyhow::Error>(blocks(&file.metadata()?)));
        Ok(resident()?.saturating_sub(before).max(blocks.transpose()?.unwrap_or(0)))
    }
}

/// A file without a name, of so many bytes that take no room.
fn sparse_file(size: u64) -> Result<File> {
    let file = tempfile::tempfile()?;
    file.set_len(size)?;
    Ok(file)
}

fn blocks(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

/// Bytes of this process that are resident.
fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

/// A number of a pool of huge pages; 0 where there is none.
fn pool(page_size: u64, name: &str) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page_size >> 10);
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn timed<T, E: Into<anyhow::Error>>(act: impl FnOnce() -> Result<T, E>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let made = act().map_err(Into::into)?;
    Ok((start.elapsed(), made))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 8 << 20;

    #[test]
    fn every_backing_that_the_host_has_is_measured_with_nothing_left() {
        for measured in Measured::ALL.into_iter().filter(|measured| measured.missing(SIZE).is_none()) {
            for round in [measured.own(SIZE), measured.raw(SIZE)] {
                let round = round.with_context(|| format!("{measured:?}")).unwrap();
                // Other tests of this process have memory too: only of files it is known to whom it belongs.
                if measured == Measured::SharedFile || measured == Measured::Memfd {
                    assert!(round.left < SIZE, "{measured:?}: {round:?}");
                }
            }
        }
    }

    #[test]
    fn a_pool_that_is_too_small_is_missing_with_the_numbers() {
        let missing = Measured::Huge1G.missing(1 << 50).unwrap();
        assert!(missing.starts_with("1048576 free huge pages of 1073741824 bytes"), "{missing}");
        assert_eq!(Measured::Memfd.missing(1 << 50), None);
    }
}
