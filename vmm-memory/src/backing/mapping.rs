//! `Mapping`: a range of host addresses, with inaccessible ones on both sides of it.
#![expect(unsafe_code, reason = "mmap, madvise, mlock2 and munmap")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Bytes of inaccessible addresses on each side: more than any structure whose field a wrong access would reach.
pub(super) const GUARD: usize = 64 << 10;

/// `MADV_DONTNEED_LOCKED` (Linux 5.18), which libc lacks.
const DONTNEED_LOCKED: libc::c_int = 24;

/// What the kernel is told about a part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Put its pages together to huge ones.
    HugePages,
    /// Leave it out of core dumps.
    DontDump,
    /// Make all its pages, writable.
    Populate,
    /// Make its pages readable.
    PopulateRead,
    /// Give its pages back, locked ones too.
    Discard,
}

impl Advice {
    /// As madvise(2) calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HugePages => "MADV_HUGEPAGE",
            Self::DontDump => "MADV_DONTDUMP",
            Self::Populate => "MADV_POPULATE_WRITE",
            Self::PopulateRead => "MADV_POPULATE_READ",
            Self::Discard => "MADV_DONTNEED",
        }
    }
}

/// What is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'fd> {
    /// Private memory.
    Anonymous,
    /// A file from an offset on, shared with it.
    Shared(BorrowedFd<'fd>, u64),
    /// A file from an offset on, copied where it is written.
    Private {
        file: BorrowedFd<'fd>,
        offset: u64,
        /// Whether room for all copies is set aside: in a pool of huge pages a copy without it can be a bus error.
        reserve: bool,
    },
}

/// Host addresses that are this value's own. Nothing is there until [`Mapping::place`].
#[derive(Debug)]
pub(super) struct Mapping {
    /// First address of the memory; `GUARD` bytes before it and behind its end are reserved with it.
    start: *mut u8,
    length: usize,
}

// SAFETY:
// - a `Mapping` is the only owner of addresses that are not tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY:
// - through a shared `Mapping` its address is read and the kernel called, which serialises such calls itself;
// - the memory behind it is reached through raw pointers only, whose users answer for their accesses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `length` bytes, a multiple of the page size, whose first address is a multiple of `align`, a power of two
    /// that is not below the page size.
    pub(super) fn reserve(length: usize, align: usize) -> io::Result<Self> {
        let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
        let guarded = length.checked_add(2 * GUARD).ok_or_else(too_large)?;
        let with_slack = guarded.checked_add(align).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY:
        // - the kernel chooses the addresses, so nothing that is mapped is replaced.
        let base = unsafe { libc::mmap(ptr::null_mut(), with_slack, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast::<u8>();
        let first = (base as usize).wrapping_add(GUARD);
        let before = first.checked_next_multiple_of(align).unwrap_or(first).wrapping_sub(first);
        let start = base.wrapping_add(GUARD).wrapping_add(before);
        let mapping = Self { start, length };
        // What alignment has not used goes back; a failure leaves addresses reserved and nothing else.
        // SAFETY:
        // - both parts were reserved above, lie outside of what `mapping` owns, and nobody knows their addresses.
        unsafe { unmap(base, before) };
        let behind = start.wrapping_add(length).wrapping_add(GUARD);
        // SAFETY:
        // - as above: `before` bytes of the slack are in front, the rest of it is here.
        unsafe { unmap(behind, align.saturating_sub(before)) };
        Ok(mapping)
    }

    /// Puts `source` at these addresses, readable and writable. No page is touched.
    pub(super) fn place(&self, source: Source<'_>) -> io::Result<()> {
        let (fd, offset, flags) = match source {
            Source::Anonymous => (-1, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
            Source::Shared(fd, offset) => (fd.as_raw_fd(), offset, libc::MAP_SHARED),
            Source::Private { file, offset, reserve } => {
                let overcommit = if reserve { 0 } else { libc::MAP_NORESERVE };
                (file.as_raw_fd(), offset, libc::MAP_PRIVATE | overcommit)
            }
        };
        let offset = offset.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_FIXED;
        // SAFETY:
        // - the addresses are this value's own, and nobody uses what was there: nothing yet, or what its owner makes anew;
        // - memory of a shared file changes under us as guest RAM does: nobody has a reference into it.
        let placed = unsafe { libc::mmap(self.start.cast(), self.length, access, flags, fd, offset) };
        if placed == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Tells the kernel about `length` bytes from `offset` on.
    pub(super) fn advise(&self, offset: usize, length: usize, advice: Advice) -> io::Result<()> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.start.wrapping_add(offset).cast();
        let number = match advice {
            Advice::HugePages => libc::MADV_HUGEPAGE,
            Advice::DontDump => libc::MADV_DONTDUMP,
            Advice::Populate => libc::MADV_POPULATE_WRITE,
            Advice::PopulateRead => libc::MADV_POPULATE_READ,
            Advice::Discard => libc::MADV_DONTNEED,
        };
        // SAFETY:
        // - the part is within this value's own addresses;
        // - only a discard changes what is read there, as the guest itself could: nobody has a reference into it.
        let result = unsafe { libc::madvise(start, length, number) };
        let result = checked(result);
        let is_locked = result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
        if advice != Advice::Discard || !is_locked {
            return result;
        }
        // SAFETY:
        // - as above.
        checked(unsafe { libc::madvise(start, length, DONTNEED_LOCKED) })
    }

    /// Locks every page from the moment on at which it is there.
    pub(super) fn lock(&self) -> io::Result<()> {
        // SAFETY:
        // - locking changes nothing that a program can read.
        checked(unsafe { libc::mlock2(self.start.cast(), self.length, libc::MLOCK_ONFAULT) })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base = self.start.wrapping_sub(GUARD);
        // SAFETY:
        // - the guards and what is between them are this value's own; whoever has a pointer into them keeps this value.
        unsafe { unmap(base, self.length.saturating_add(2 * GUARD)) };
    }
}

/// Gives addresses back.
///
/// # Safety
/// Nobody uses `length` bytes from `start` on, now or later, before they are mapped anew.
unsafe fn unmap(start: *mut u8, length: usize) {
    if length != 0 {
        // SAFETY:
        // - the caller says that nobody uses them.
        let result = unsafe { libc::munmap(start.cast(), length) };
        if let Err(error) = checked(result) {
            tracing::error!(?start, length, %error, "host addresses of guest memory cannot be given back");
        }
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::super::testing::Vma;
    use super::*;

    #[test]
    fn a_mapping_is_aligned_and_has_inaccessible_addresses_on_both_sides() {
        for (length, align) in [(4096, 4096), (3 << 20, 2 << 20), (1 << 20, 1 << 30)] {
            let mapping = Mapping::reserve(length, align).unwrap();
            mapping.place(Source::Anonymous).unwrap();
            let start = mapping.start() as usize;
            assert!(start.is_multiple_of(align), "{start:#x}");
            let access = |address| Vma::at(address).map(|vma| vma.access().to_owned());
            assert_eq!(access(start).as_deref(), Some("rw-p"));
            assert_eq!(access(start + length - 1).as_deref(), Some("rw-p"));
            for guard in [start - 1, start - GUARD, start + length, start + length + GUARD - 1] {
                assert_eq!(access(guard).as_deref(), Some("---p"), "{guard:#x} of {start:#x}");
            }
        }
    }

    #[test]
    fn what_is_dropped_leaves_no_address_behind() {
        let mapping = Mapping::reserve(1 << 20, 2 << 20).unwrap();
        mapping.place(Source::Anonymous).unwrap();
        let start = mapping.start() as usize;
        // Of this size, nobody maps anything at just this place before the next line.
        drop(mapping);
        assert!(Vma::at(start).is_none_or(|vma| vma.range().start != start));
    }

    #[test]
    fn a_part_that_is_not_inside_is_not_advised() {
        let mapping = Mapping::reserve(8192, 4096).unwrap();
        mapping.place(Source::Anonymous).unwrap();
        for (offset, length) in [(4096, 8192), (8192, 4096), (usize::MAX - 4095, 4096)] {
            let error = mapping.advise(offset, length, Advice::Discard).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_length_beyond_all_addresses_is_an_error() {
        let error = Mapping::reserve(usize::MAX - 4095, 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }
}
