//! A mapping: the guest's memory or a vCPU's run page.
#![expect(unsafe_code, reason = "mmap")]

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

use libc::c_int;

/// A readable and writable mapping. What it is lent to must not use it while a part of it is borrowed.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a `Mapping` is the only owner of memory that is not tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared `Mapping` nothing but its address is reached.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private zeroed memory, not reserved.
    pub fn anonymous(size: usize) -> io::Result<Self> {
        Self::new(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)
    }

    /// The first `size` bytes of `fd`, shared with it.
    pub fn shared(fd: RawFd, size: usize) -> io::Result<Self> {
        Self::new(size, libc::MAP_SHARED, fd)
    }

    /// The first `size` bytes of `fd`, copied where they are written.
    pub fn private(fd: RawFd, size: usize) -> io::Result<Self> {
        Self::new(size, libc::MAP_PRIVATE | libc::MAP_NORESERVE, fd)
    }

    /// Makes all pages, on this thread in one call.
    pub fn populate(&self) -> io::Result<()> {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// Asks for transparent huge pages.
    pub fn prefer_huge_pages(&self) -> io::Result<()> {
        self.advise(libc::MADV_HUGEPAGE)
    }

    /// Gives private pages back.
    pub fn discard(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTNEED)
    }

    fn advise(&self, advice: c_int) -> io::Result<()> {
        // SAFETY: the mapping is ours, and nobody has borrowed from it, who would need it mutably.
        let result = unsafe { libc::madvise(self.start.as_ptr().cast(), self.size, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn new(size: usize, flags: c_int, fd: RawFd) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, size })
    }

    /// The address of the first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The part of `size` bytes from `start`, if it lies inside.
    pub fn get(&mut self, start: usize, size: usize) -> Option<&mut [u8]> {
        if start.checked_add(size)? > self.size {
            return None;
        }
        // SAFETY: `start` is within the mapping.
        let first = unsafe { self.start.add(start) };
        // SAFETY: the part is within the mapping, initialised by the kernel, and borrowed from the only
        // owner, who lets no guest run meanwhile.
        Some(unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), size) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}
