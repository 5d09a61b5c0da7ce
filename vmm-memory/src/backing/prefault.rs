//! Prefault: every page of a mapping made ahead of its use, by several threads.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use vmm_core::thread::{Kind, is_confined, spawn_scoped};

use super::BackingError;
use super::mapping::{Advice, Mapping};

/// Bytes that a thread makes at a time, if pages are not larger: so long does a stop wait at most, some hundredths of a
/// second where memory is cleared at 1 GB/s.
const CHUNK: u64 = 32 << 20;

/// Most threads: clearing memory is bound by its bandwidth, which a few processors use up.
const MOST_THREADS: usize = 16;

/// `prefault`: helps to make pages.
pub static PREFAULT: Kind = Kind { name: "prefault", tables: &[] };

/// Makes all pages of a `part` of `mapping`, writable. `stop` is asked before each chunk.
///
/// The kernel does it and says what went wrong (`MADV_POPULATE_WRITE`): where a touch would be a signal, because a file has
/// become shorter or its file system is full, this is an error.
pub(super) fn prefault(
    mapping: &Mapping,
    part: Range<u64>,
    page_size: u64,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<(), BackingError> {
    let size = part.end.saturating_sub(part.start);
    let work = Work {
        mapping,
        chunk: CHUNK.max(page_size),
        behind: part.end,
        next: part.start.into(),
        done: 0.into(),
        end: Mutex::default(),
    };
    // A confined thread has no helpers, and may not even look how many processors there are.
    let threads = if is_confined() { 1 } else { threads(size.div_ceil(work.chunk)) };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without it the others take longer.
            if spawn_scoped(scope, &PREFAULT, PREFAULT.name, || work.run(stop)).is_err() {
                break;
            }
        }
        work.run(stop);
    });
    let done = work.done.into_inner();
    match work.end.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some(End::Stopped) => Err(BackingError::Stopped { done, size }),
        Some(End::Failed(source)) if done == 0 && source.raw_os_error() == Some(libc::EINVAL) => {
            Err(BackingError::NoPrefault(source))
        }
        Some(End::Failed(source)) => Err(BackingError::Prefault { done, size, source }),
    }
}

fn threads(chunks: u64) -> usize {
    // Found out once, for which files are opened: later nobody may.
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let find = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let processors = *PROCESSORS.get_or_init(find);
    processors.min(MOST_THREADS).min(chunks.try_into().unwrap_or(usize::MAX))
}

/// Why it ended before everything was there.
enum End {
    Stopped,
    Failed(io::Error),
}

/// What the threads share.
struct Work<'a> {
    mapping: &'a Mapping,
    chunk: u64,
    /// Where the part ends.
    behind: u64,
    /// Where the next chunk begins; only a number to divide the work by.
    next: AtomicU64,
    /// Bytes that are there; read when all threads have been joined.
    done: AtomicU64,
    /// The first reason to end early.
    end: Mutex<Option<End>>,
}

impl Work<'_> {
    /// Makes chunk after chunk, as long as there is one and nobody has a reason to end.
    fn run(&self, stop: &(dyn Fn() -> bool + Sync)) {
        loop {
            let start = self.next.fetch_add(self.chunk, Ordering::Relaxed);
            if start >= self.behind || self.has_ended() {
                return;
            }
            if stop() {
                return self.end(End::Stopped);
            }
            let size = self.chunk.min(self.behind.saturating_sub(start));
            match self.populate(start, size) {
                Ok(()) => _ = self.done.fetch_add(size, Ordering::Relaxed),
                Err(error) => return self.end(End::Failed(error)),
            }
        }
    }

    fn populate(&self, start: u64, size: u64) -> io::Result<()> {
        let (start, size) = (usize::try_from(start), usize::try_from(size));
        let (start, size) = (start.map_err(io::Error::other)?, size.map_err(io::Error::other)?);
        self.mapping.advise(start, size, Advice::Populate)
    }

    fn has_ended(&self) -> bool {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn end(&self, why: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicUsize;

    use super::super::mapping::Source;
    use super::super::testing::Vma;
    use super::*;

    const LENGTH: usize = 3 * CHUNK as usize + 4096;

    fn anonymous() -> Mapping {
        let mapping = Mapping::reserve(LENGTH, 4096).unwrap();
        mapping.place(Source::Anonymous).unwrap();
        mapping
    }

    #[test]
    fn every_page_is_there_afterwards() {
        let mapping = anonymous();
        prefault(&mapping, 0..mapping.length() as u64, 4096, &|| false).unwrap();
        assert_eq!(Vma::at(mapping.start() as usize).unwrap().bytes("Rss"), LENGTH as u64);
    }

    #[test]
    fn a_stop_ends_it_between_two_chunks() {
        let mapping = anonymous();
        let asked = AtomicUsize::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) != 0;
        let error = prefault(&mapping, 0..mapping.length() as u64, 4096, &stop).unwrap_err();
        assert!(matches!(error, BackingError::Stopped { done: CHUNK, .. }), "{error}");
        assert!(asked.load(Ordering::Relaxed) <= 1 + MOST_THREADS);
        // A transparent huge page can go beyond the end of the chunk.
        let resident = Vma::at(mapping.start() as usize).unwrap().bytes("Rss");
        assert!((CHUNK..CHUNK + (2 << 20)).contains(&resident), "{resident}");
    }

    #[test]
    fn fault_d6_a_file_that_became_shorter_is_an_error_and_no_signal() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH as u64).unwrap();
        let mapping = Mapping::reserve(LENGTH, 4096).unwrap();
        mapping.place(Source::Shared(file.as_fd(), 0)).unwrap();
        file.set_len(CHUNK).unwrap();
        let error = prefault(&mapping, 0..mapping.length() as u64, 4096, &|| false).unwrap_err();
        assert!(matches!(error, BackingError::Prefault { done: ..=CHUNK, .. }), "{error:?}");
    }

    #[test]
    fn there_are_no_more_threads_than_chunks() {
        assert_eq!(threads(1), 1);
        assert!((1..=MOST_THREADS).contains(&threads(u64::MAX)));
    }
}
