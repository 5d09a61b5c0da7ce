//! `BackingError`: why host memory cannot be had, with the numbers.

use std::io;

use super::DiscardError;

/// Why host memory cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum BackingError {
    #[error("{size} bytes of guest memory are not a number of whole pages of {page_size} bytes")]
    BadSize { size: u64, page_size: u64 },
    #[error("cannot reserve {size} bytes of host addresses for guest memory")]
    Addresses {
        size: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot map {size} bytes of guest memory from {name}")]
    Map {
        name: String,
        size: u64,
        #[source]
        source: io::Error,
    },
    #[error(
        "guest memory of {size} bytes needs {needed} huge pages of {page_size} bytes, and {available} can be had"
    )]
    HugePages {
        size: u64,
        page_size: u64,
        needed: u64,
        available: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a memfd of {size} bytes in pages of {page_size} bytes ({step})")]
    Memfd {
        size: u64,
        page_size: u64,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot look at {name}")]
    Look {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} is {kind}, not a regular file")]
    NotRegular { name: String, kind: &'static str },
    #[error("{name} has {length} bytes, but guest memory takes {size} from offset {offset} on")]
    TooShort { name: String, length: u64, offset: u64, size: u64 },
    #[error("offset {offset} of {name} is not a multiple of its page size, {page_size} bytes")]
    BadOffset { name: String, offset: u64, page_size: u64 },
    #[error("{name} is not open for {missing}, which guest memory needs {purpose}")]
    NotOpenFor { name: String, missing: &'static str, purpose: &'static str },
    #[error(
        "{name} has pages of {found} bytes, not of {wanted}: it is not on a file system of such huge pages"
    )]
    OtherPages { name: String, found: u64, wanted: u64 },
    #[error("the kernel does not take the advice {advice} for guest memory")]
    Advice {
        advice: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot lock {size} bytes of guest memory, with a limit of {limit} (RLIMIT_MEMLOCK)")]
    Lock {
        size: u64,
        limit: String,
        #[source]
        source: io::Error,
    },
    #[error("this kernel cannot make pages ahead of their use (MADV_POPULATE_WRITE, Linux 5.14)")]
    NoPrefault(#[source] io::Error),
    #[error("cannot make the pages of guest memory ahead of their use: {done} of {size} bytes are there")]
    Prefault {
        done: u64,
        size: u64,
        #[source]
        source: io::Error,
    },
    #[error("{size} bytes of guest memory cannot be given back for the next life of a machine")]
    Renew {
        size: u64,
        #[source]
        source: DiscardError,
    },
    #[error("stopped while the pages of guest memory were made: {done} of {size} bytes were there")]
    Stopped { done: u64, size: u64 },
}

impl BackingError {
    /// Whether the file that was named is at fault, and not the host.
    #[must_use]
    pub fn is_about_file(&self) -> bool {
        matches!(
            self,
            Self::NotRegular { .. }
                | Self::TooShort { .. }
                | Self::BadOffset { .. }
                | Self::NotOpenFor { .. }
                | Self::OtherPages { .. }
        )
    }
}
