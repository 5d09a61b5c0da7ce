//! `Scattered`: pieces of guest RAM of one snapshot, as one system call takes them that comes back at once.
//!
//! Without pins, which [`PinnedBuffers`](crate::PinnedBuffers) have: what is unmapped waits for the snapshot's read section, and
//! the kernel is done with the memory when the call returns.
#![expect(unsafe_code, reason = "hands guest memory to system calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::region::RamSlice;
use crate::{GuestMemory, PinError};

/// Most pieces that a system call takes: `UIO_MAXIOV`.
const MOST_PIECES: usize = 1024;

/// Pieces of guest RAM, in the order in which a call goes through them. Emptied, it keeps its room for the next ones.
pub struct Scattered<'m> {
    memory: &'m GuestMemory,
    slices: Vec<RamSlice<'m>>,
    /// One for each slice, and room for one more.
    iovecs: Vec<libc::iovec>,
    length: u64,
}

impl<'m> Scattered<'m> {
    /// Most pieces that [`read_from`](Self::read_from) and [`write_to`](Self::write_to) take.
    pub const MOST_PIECES: usize = MOST_PIECES - 1;

    /// None so far, of `memory`.
    #[must_use]
    pub fn new(memory: &'m GuestMemory) -> Self {
        Self { memory, slices: Vec::new(), iovecs: Vec::new(), length: 0 }
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.slices.clear();
        self.iovecs.clear();
        self.length = 0;
    }

    /// Forgets the first `count` pieces.
    pub fn drop_front(&mut self, count: usize) {
        let count = count.min(self.slices.len());
        let dropped: u64 = self.slices.drain(..count).map(|slice| slice.len() as u64).sum();
        self.iovecs.drain(..count);
        self.length = self.length.saturating_sub(dropped);
    }

    /// Adds a buffer; one that crosses from one region to the next becomes two pieces.
    ///
    /// # Errors
    /// [`PinError::NoMemory`]: it is not in guest RAM as a whole. What is there already stays.
    pub fn push(&mut self, GuestAddress(address): GuestAddress, length: u64) -> Result<(), PinError> {
        let absent = PinError::NoMemory { address, length };
        let before = self.slices.len();
        let mut at = 0;
        while at < length {
            let Some(slice) = self.slice(address.checked_add(at), length.saturating_sub(at)) else {
                self.slices.truncate(before);
                self.iovecs.truncate(before);
                return Err(absent);
            };
            at = at.saturating_add(slice.len() as u64);
            let base = slice.ptr_guard_mut().as_ptr().cast();
            self.iovecs.push(libc::iovec { iov_base: base, iov_len: slice.len() });
            self.slices.push(slice);
        }
        self.length = self.length.saturating_add(length);
        Ok(())
    }

    /// At most `length` bytes at `address`, as many as one region has.
    fn slice(&self, address: Option<u64>, length: u64) -> Option<RamSlice<'m>> {
        let (region, offset) = self.memory.to_region_addr(GuestAddress(address?))?;
        let there = region.len().saturating_sub(offset.0).min(length);
        region.get_slice(offset, usize::try_from(there).ok()?).ok()
    }

    /// Bytes of all pieces.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many pieces there are.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.slices.len()
    }

    /// Fills the pieces from `fd`, which does not block, in one system call (readv(2)), and `spill` behind them; returns how much
    /// was read. Of a packet that is longer than the pieces, that is more than their length.
    ///
    /// # Errors
    /// The host's; EINVAL if there are more pieces than [`MOST_PIECES`](Self::MOST_PIECES).
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, spill: &mut [u8]) -> io::Result<u64> {
        let own = self.iovecs.len();
        self.iovecs.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
        let count = arguments(&self.iovecs);
        let result = count.map(|count| {
            // SAFETY:
            // - the iovecs are an array of that length; all but the last lead into slices of regions that the snapshot keeps mapped,
            //   the last one to `spill`, which is borrowed for the call;
            // - guest memory is no Rust object: what the kernel writes there meets volatile accesses only.
            unsafe { libc::readv(fd.as_raw_fd(), self.iovecs.as_ptr(), count) }
        });
        self.iovecs.truncate(own);
        let read = u64::try_from(result?).map_err(|_| io::Error::last_os_error())?;
        self.mark(read);
        Ok(read)
    }

    /// Writes the pieces to `fd`, which does not block, in one system call (writev(2)); returns how much was written.
    ///
    /// # Errors
    /// As [`read_from`](Self::read_from).
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<u64> {
        let count = arguments(&self.iovecs)?;
        // SAFETY:
        // - the iovecs are an array of that length, and lead into slices of regions that the snapshot keeps mapped;
        // - the kernel only reads them.
        let result = unsafe { libc::writev(fd.as_raw_fd(), self.iovecs.as_ptr(), count) };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Notes that the first `count` bytes were written.
    fn mark(&self, count: u64) {
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        for slice in &self.slices {
            let length = slice.len().min(left);
            if length == 0 {
                return;
            }
            slice.bitmap().mark_dirty(0, length);
            left = left.saturating_sub(length);
        }
    }
}

/// The number of `iovecs`, as a system call takes it.
fn arguments(iovecs: &[libc::iovec]) -> io::Result<libc::c_int> {
    let count = libc::c_int::try_from(iovecs.len()).ok().filter(|_| iovecs.len() <= MOST_PIECES);
    count.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use vm_memory::Bytes;
    use vmm_core::fake::FakeVm;

    use super::*;
    use crate::{AddressSpace, Backing, PAGE, RamRange};

    /// Two regions that touch, and one apart.
    fn memory() -> AddressSpace {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        for start in [0, PAGE, 4 * PAGE] {
            space.map(&[RamRange { start, size: PAGE }], &Backing::default()).unwrap();
        }
        space
    }

    #[test]
    fn pieces_across_regions_are_filled_in_order_and_the_rest_spills() {
        let (space, (mut one, other)) = (memory(), UnixStream::pair().unwrap());
        let memory = space.memory();
        let mut scattered = Scattered::new(&memory);
        scattered.push(GuestAddress(4 * PAGE), 2).unwrap();
        scattered.push(GuestAddress(PAGE - 1), 3).unwrap();
        assert_eq!((scattered.len(), scattered.pieces()), (5, 3));
        one.write_all(b"abcdefgh").unwrap();
        let mut spill = [0; 2];
        assert_eq!(scattered.read_from(other.as_fd(), &mut spill).unwrap(), 7);
        let (mut first, mut second) = ([0; 2], [0; 3]);
        memory.read_slice(&mut first, GuestAddress(4 * PAGE)).unwrap();
        memory.read_slice(&mut second, GuestAddress(PAGE - 1)).unwrap();
        assert_eq!((&first, &second, &spill), (b"ab", b"cde", b"fg"));
        assert_eq!(scattered.write_to(other.as_fd()).unwrap(), 5);
        let mut back = [0; 5];
        one.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"abcde");
        scattered.drop_front(2);
        assert_eq!((scattered.len(), scattered.pieces()), (2, 1));
        assert_eq!(scattered.write_to(other.as_fd()).unwrap(), 2);
        let mut back = [0; 2];
        one.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"de");
        scattered.clear();
        assert!(scattered.is_empty() && scattered.pieces() == 0);
    }

    #[test]
    fn fault_a3_a_buffer_outside_of_ram_is_refused_and_those_before_it_stay() {
        let space = memory();
        let memory = space.memory();
        let mut scattered = Scattered::new(&memory);
        scattered.push(GuestAddress(0), 8).unwrap();
        for (address, length) in [(2 * PAGE, 1), (PAGE, PAGE + 1), (u64::MAX, 2), (4 * PAGE, u64::MAX)] {
            let error = scattered.push(GuestAddress(address), length).unwrap_err();
            assert_eq!(error, PinError::NoMemory { address, length });
            assert_eq!((scattered.len(), scattered.pieces(), scattered.iovecs.len()), (8, 1, 1));
        }
    }

    #[test]
    fn more_pieces_than_a_system_call_takes_are_refused() {
        let (space, (one, other)) = (memory(), UnixStream::pair().unwrap());
        let memory = space.memory();
        let mut scattered = Scattered::new(&memory);
        for at in 0..=Scattered::MOST_PIECES as u64 {
            scattered.push(GuestAddress(at), 1).unwrap();
        }
        drop(one);
        let error = scattered.read_from(other.as_fd(), &mut [0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(scattered.iovecs.len(), Scattered::MOST_PIECES + 1);
    }
}
