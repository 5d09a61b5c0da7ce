//! `Mapping`: memory that a vCPU shares with the kernel, of which the run page and the dirty ring are made.
#![expect(unsafe_code, reason = "a mapping shared with the kernel")]

use std::io;
use std::ptr::NonNull;

/// A mapping; unmapped when it is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY:
// - the mapping belongs to the process, not to a thread;
// - this type gives out its address only; what is done there, its users answer for.
unsafe impl Send for Mapping {}
// SAFETY:
// - as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of the descriptor `fd` from `offset` on.
    pub(crate) fn new(fd: i32, flags: i32, length: usize, offset: i64) -> io::Result<Self> {
        // SAFETY:
        // - a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { base, length })
    }

    /// The first byte, aligned to a page.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY:
        // - base and length are those of a mapping that only this value owns.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
