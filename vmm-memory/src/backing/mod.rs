//! Backing: where guest RAM comes from on the host, as a plain description.
//!
//! [`HostMemory::reserve`] makes it real. What the host cannot give is an error with its numbers, before a page of it is
//! touched where that can be known, and never a signal.

mod descriptor;
mod discard;
mod error;
mod host_memory;
mod mapping;
mod prefault;
#[cfg(test)]
pub(crate) mod testing;

use std::fs::File;
use std::sync::Arc;

pub use discard::DiscardError;
pub use error::BackingError;
pub use host_memory::HostMemory;
pub use prefault::PREFAULT;

/// How host memory for the guest is made.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Where the pages come from.
    pub kind: BackingKind,
    /// Their size.
    pub huge_pages: HugePages,
    /// Whether every page is there before the memory is used: no first touch waits or fails later.
    pub prefault: bool,
    /// Whether pages that are there stay in RAM: they are never swapped out or written back to make room. Pages from a pool
    /// of huge pages are so in any case, and do not count towards the limit of locked memory.
    pub lock: bool,
    /// Whether core dumps of this process contain the memory.
    pub dump: bool,
}

/// Where the pages of guest RAM come from.
#[derive(Clone, Debug)]
pub enum BackingKind {
    /// Private memory of this process. With huge pages of a fixed size it is a memfd all the same: of private pages the
    /// pool keeps what was discarded for the one who discarded it (Linux 6.9).
    Anonymous,
    /// A file without a name, shared with whoever is given its descriptor; sealed, so that nobody can change its size.
    Memfd,
    /// A regular file.
    File {
        /// The file: open for reading, and if it is shared for writing too.
        file: Arc<File>,
        /// Whether what the guest writes is written to the file; otherwise it stays in this process, and pages that nobody
        /// has written are those of the file.
        shared: bool,
        /// First byte of the file, a multiple of its page size.
        offset: u64,
    },
}

/// The size of the pages behind guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Nothing is asked for: small ones, or what the host's setting of transparent huge pages makes of them.
    #[default]
    None,
    /// The kernel is advised to put small pages together, where its setting allows that (`always` and `madvise`).
    Transparent,
    /// 2 MiB, from the host's pool.
    Size2M,
    /// 1 GiB, from the host's pool.
    Size1G,
}

impl HugePages {
    /// The fixed size in bytes, if there is one.
    #[must_use]
    pub fn fixed_size(self) -> Option<u64> {
        match self {
            Self::None | Self::Transparent => None,
            Self::Size2M => Some(2 << 20),
            Self::Size1G => Some(1 << 30),
        }
    }
}

impl Backing {
    /// Small pages of this kind, made when they are touched, which may be swapped out and are in no core dump.
    #[must_use]
    pub fn new(kind: BackingKind) -> Self {
        Self { kind, huge_pages: HugePages::None, prefault: false, lock: false, dump: false }
    }

    /// The same, `bytes` further on in its file if it has one: the backing of a second range of guest RAM.
    #[must_use]
    pub fn further(&self, bytes: u64) -> Self {
        let mut backing = self.clone();
        if let BackingKind::File { offset, .. } = &mut backing.kind {
            // An offset beyond what files can have is refused as beyond the end of this one.
            *offset = offset.saturating_add(bytes);
        }
        backing
    }
}

impl Default for Backing {
    /// Private memory in small pages.
    fn default() -> Self {
        Self::new(BackingKind::Anonymous)
    }
}
