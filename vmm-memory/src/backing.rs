//! `HostMemory`: host memory that can become guest RAM.

use std::fs::File;
use std::io;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};

/// A mapping of this process that nothing else refers to. Dropped, it is unmapped.
#[derive(Debug)]
pub struct HostMemory(MmapRegion);

impl HostMemory {
    /// Reserves anonymous private memory, which reads as zero; no page of it is touched.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn anonymous(size: u64) -> io::Result<Self> {
        let length = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        MmapRegionBuilder::new_with_bitmap(length, ())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map(Self)
            .map_err(|error| match error {
                MmapRegionError::Mmap(error) => error,
                other => io::Error::other(other),
            })
    }

    /// Its first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no mapping is empty")]
    pub fn len(&self) -> u64 {
        self.0.size() as u64
    }

    /// The file it is a mapping of, and the offset of its first byte there.
    #[must_use]
    pub fn file(&self) -> Option<(&File, u64)> {
        self.0.file_offset().map(|offset| (offset.file(), offset.start()))
    }
}
