//! `Storage`: what holds the bytes of a disk, in calls that block; [`Image`] is the raw form.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;
use vmm_memory::PinnedBuffers;

use super::engine::{Operation, Request, ended_early};
use super::image::Image;

/// Zeros are written in pieces of so many bytes, where the host cannot make them.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A disk's bytes. Each call but [`write_zeroes`](Self::write_zeroes) does the whole of it, or fails; which part was done then is not
/// known.
pub trait Storage: Send + Sync {
    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// The host's, or the storage ends early.
    fn read(&self, buffers: PinnedBuffers, offset: u64) -> io::Result<()>;

    /// Writes `buffers` from `offset` on; durably if `durable`.
    ///
    /// # Errors
    /// The host's.
    fn write(&self, buffers: PinnedBuffers, offset: u64, durable: bool) -> io::Result<()>;

    /// Makes what was written before durable.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()>;

    /// Forgets the contents of a range, if it can.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as zero, from its beginning on: the whole where the host makes zeros, else a piece, so that who asks for
    /// much can be stopped. Returns how many bytes were done; of a range that is not empty, more than none.
    ///
    /// # Errors
    /// The host's.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<u64>;

    /// Its length in bytes now.
    ///
    /// # Errors
    /// The host's.
    fn length(&self) -> io::Result<u64>;
}

/// Does what `request` asks for, or a piece of the zeros. Returns what is left to do then: a request like it.
pub(super) fn perform(storage: &dyn Storage, request: Request) -> io::Result<Option<Request>> {
    let Request { operation, durable, offset, length, buffers, .. } = request;
    match operation {
        Operation::Read => return storage.read(buffers, offset).map(|()| None),
        Operation::Write => return storage.write(buffers, offset, durable).map(|()| None),
        Operation::Flush => return storage.flush().map(|()| None),
        Operation::Discard => storage.discard(offset, length)?,
        Operation::WriteZeroes { unmap } => match storage.write_zeroes(offset, length, unmap)? {
            done if done >= length => {}
            0 => return Err(ended_early(operation, offset)),
            done => {
                let (offset, length) = (offset.saturating_add(done), length.saturating_sub(done));
                return Ok(Some(Request { offset, length, buffers, ..request }));
            }
        },
    }
    if durable {
        storage.flush()?;
    }
    Ok(None)
}

impl Storage for Image {
    fn read(&self, mut buffers: PinnedBuffers, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let file = self.file_for(&buffers, offset);
            match retry(|| buffers.read_from(file, offset))? {
                0 => return Err(ended_early(Operation::Read, offset)),
                count => offset = offset.saturating_add(count),
            }
        }
        Ok(())
    }

    fn write(&self, mut buffers: PinnedBuffers, mut offset: u64, durable: bool) -> io::Result<()> {
        while !buffers.is_empty() {
            let file = self.file_for(&buffers, offset);
            let written = retry(|| buffers.write_to(file, offset, durable));
            match if durable { self.wrote_durably(written)? } else { written? } {
                0 => return Err(ended_early(Operation::Write, offset)),
                count => offset = offset.saturating_add(count),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let [file, _] = self.files();
        self.flushed(retry(|| Ok(fdatasync(file)?)))
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let [_, file] = self.files();
        match retry(|| Ok(fallocate(file, discard_mode(), offset, length)?)) {
            // A discard is advice.
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<u64> {
        let [_, file] = self.files();
        match retry(|| Ok(fallocate(file, zero_mode(unmap), offset, length)?)) {
            // The next piece is refused as soon as this one was.
            Err(error) if is_unsupported(&error) => write_zeros(file, offset, length),
            result => result.map(|()| length),
        }
    }

    fn length(&self) -> io::Result<u64> {
        Image::length(self)
    }
}

impl Image {
    /// The descriptor through which a request goes.
    fn file_for(&self, buffers: &PinnedBuffers, offset: u64) -> &File {
        let [direct, cached] = self.files();
        if self.is_aligned(offset, buffers.pieces()) { direct } else { cached }
    }
}

/// How fallocate(2) forgets a range. The length of the file stays.
pub(super) fn discard_mode() -> FallocateFlags {
    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
}

/// How fallocate(2) makes zeros.
pub(super) fn zero_mode(unmap: bool) -> FallocateFlags {
    if unmap { discard_mode() } else { FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE }
}

/// Whether the file system, or the device, cannot do this at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

/// The zeros with which a range of so many bytes begins, as many as are written in one go.
pub(super) fn zeros(length: u64) -> &'static [u8] {
    let count = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
    ZEROS.get(..count).unwrap_or_default()
}

fn write_zeros(file: &File, offset: u64, length: u64) -> io::Result<u64> {
    let written = retry(|| Ok(rustix::io::pwrite(file, zeros(length), offset)?))?;
    Ok(written as u64)
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
            result => return result,
        }
    }
}
