//! `PinnedBuffers`: pieces of guest RAM that a request in flight reads or writes, as the kernel takes them.
#![expect(unsafe_code, reason = "hands guest memory to system calls")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::GuestMemory;
use crate::pin::{Leaving, PinHolder, RegionPin};
use crate::region::RamSlice;

/// Most pieces that one system call takes: `UIO_MAXIOV`.
const MOST_PIECES: usize = 1024;

/// Why buffers of a guest cannot be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum PinError {
    #[error("there is no guest RAM at {address:#x}, in a buffer of {length:#x} bytes")]
    NoMemory { address: u64, length: u64 },
    #[error(transparent)]
    Leaving(#[from] Leaving),
}

/// Pinned guest RAM, in the order in which a request goes through it. What is done with is given up from the front.
#[derive(Debug)]
pub struct PinnedBuffers {
    /// From `done` on, what is left.
    pieces: Vec<libc::iovec>,
    done: usize,
    left: u64,
    pins: Vec<RegionPin>,
}

// SAFETY:
// - the pointers lead into the pinned parts of regions, which stay mapped as long as the pins, owned here too;
// - guest RAM is accessed by volatile accesses and by the kernel only, from any thread.
unsafe impl Send for PinnedBuffers {}

impl PinnedBuffers {
    /// Pins `buffers`, of addresses and lengths; one that crosses from one region to the next becomes two pieces.
    ///
    /// # Errors
    /// [`PinError`]; nothing is pinned then.
    pub fn pin(
        memory: &GuestMemory,
        holder: &Arc<PinHolder>,
        buffers: impl IntoIterator<Item = (GuestAddress, u64)>,
    ) -> Result<Self, PinError> {
        let mut pinned = Self { pieces: Vec::new(), done: 0, left: 0, pins: Vec::new() };
        for (address, length) in buffers {
            pinned.add(memory, holder, address, length)?;
        }
        Ok(pinned)
    }

    /// No buffers, for a request that moves no data.
    #[must_use]
    pub fn none() -> Self {
        Self { pieces: Vec::new(), done: 0, left: 0, pins: Vec::new() }
    }

    fn add(
        &mut self,
        memory: &GuestMemory,
        holder: &Arc<PinHolder>,
        GuestAddress(address): GuestAddress,
        length: u64,
    ) -> Result<(), PinError> {
        let absent = PinError::NoMemory { address, length };
        let mut at = 0;
        while at < length {
            let start = GuestAddress(address.checked_add(at).ok_or(absent)?);
            let (region, offset) = memory.to_region_addr(start).ok_or(absent)?;
            let there = region.len().saturating_sub(offset.0).min(length.saturating_sub(at));
            let bytes = usize::try_from(there).map_err(|_| absent)?;
            let slice = region.get_slice(offset, bytes).map_err(|_| absent)?;
            let base = slice.ptr_guard_mut().as_ptr().cast();
            // Buffers that follow each other are mostly in the same part.
            if !self.pins.iter().rev().any(|pin| pin.covers(region, offset.0, there)) {
                self.pins.push(region.pin_part(offset.0, there, holder)?);
            }
            self.pieces.push(libc::iovec { iov_base: base, iov_len: bytes });
            at = at.saturating_add(there);
        }
        self.left = self.left.saturating_add(length);
        Ok(())
    }

    /// Bytes that are left.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.left
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Whether somebody waits for some of the pins to go.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.pins.iter().any(RegionPin::is_leaving)
    }

    /// What is left, as many pieces as a system call takes. The pointers are good as long as these buffers, and stay where
    /// they are when the buffers are moved.
    #[must_use]
    pub fn iovecs(&self) -> &[libc::iovec] {
        let left = self.pieces.get(self.done..).unwrap_or_default();
        left.get(..MOST_PIECES).unwrap_or(left)
    }

    /// Addresses in this process, and lengths, of what is left.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        let left = self.pieces.get(self.done..).unwrap_or_default();
        left.iter().map(|piece| (piece.iov_base.addr() as u64, piece.iov_len as u64))
    }

    /// Gives up `count` bytes at the front, which somebody has read.
    pub fn advance(&mut self, count: u64) {
        let mut count = count.min(self.left);
        self.left = self.left.saturating_sub(count);
        while let Some(piece) = self.pieces.get_mut(self.done) {
            let length = piece.iov_len as u64;
            if count < length {
                let step = usize::try_from(count).unwrap_or(piece.iov_len);
                piece.iov_base = piece.iov_base.wrapping_byte_add(step);
                piece.iov_len = piece.iov_len.saturating_sub(step);
                return;
            }
            count = count.saturating_sub(length);
            self.done = self.done.saturating_add(1);
        }
    }

    /// As [`advance`](Self::advance), of bytes that the kernel has written: they are noted as such.
    pub fn advance_written(&mut self, count: u64) {
        self.for_each_slice(count, |slice, _| slice.bitmap().mark_dirty(0, slice.len()));
        self.advance(count);
    }

    /// Copies `bytes` to the front, as much as there is room for, and gives that up; returns how much it was.
    pub fn fill_from(&mut self, bytes: &[u8]) -> u64 {
        let count = self.left.min(bytes.len() as u64);
        self.for_each_slice(count, |slice, at| {
            slice.copy_from(bytes.get(at..).unwrap_or_default());
        });
        self.advance(count);
        count
    }

    /// Copies from the front to `bytes`, as much as there is, and gives that up; returns how much it was.
    pub fn drain_to(&mut self, bytes: &mut [u8]) -> u64 {
        let count = self.left.min(bytes.len() as u64);
        self.for_each_slice(count, |slice, at| {
            slice.copy_to(bytes.get_mut(at..).unwrap_or_default());
        });
        self.advance(count);
        count
    }

    /// Calls `act` with each piece of the first `count` bytes, and with how many come before it.
    fn for_each_slice(&self, count: u64, mut act: impl FnMut(&RamSlice<'_>, usize)) {
        let mut at = 0_usize;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        for piece in self.pieces.get(self.done..).unwrap_or_default() {
            let length = piece.iov_len.min(count.saturating_sub(at));
            if length == 0 {
                return;
            }
            let slice = self.pins.iter().find_map(|pin| {
                let offset = piece.iov_base.addr().checked_sub(pin.host_address().addr())?;
                pin.get_slice(MemoryRegionAddress(offset as u64), length).ok()
            });
            if let Some(slice) = slice {
                act(&slice, at);
            }
            at = at.saturating_add(length);
        }
    }

    /// Fills what is left from `file` at `offset`, in one system call (preadv(2)); returns how much was read, and gives
    /// that up.
    ///
    /// # Errors
    /// The host's.
    pub fn read_from(&mut self, file: &File, offset: u64) -> io::Result<u64> {
        let (pieces, count, offset) = self.arguments(offset)?;
        // SAFETY:
        // - the iovecs are an array of that length, and lead into memory that is pinned, so mapped;
        // - guest memory is no Rust object: what the kernel writes there meets volatile accesses only.
        let result = unsafe { libc::preadv(file.as_raw_fd(), pieces, count, offset) };
        let read = u64::try_from(result).map_err(|_| io::Error::last_os_error())?;
        self.advance_written(read);
        Ok(read)
    }

    /// Writes what is left to `file` at `offset`, in one system call (pwritev2(2)), which ends when it is on the disk if
    /// `durable`; returns how much was written, and gives that up.
    ///
    /// # Errors
    /// The host's.
    pub fn write_to(&mut self, file: &File, offset: u64, durable: bool) -> io::Result<u64> {
        let (pieces, count, offset) = self.arguments(offset)?;
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        // SAFETY:
        // - the iovecs are an array of that length, and lead into memory that is pinned, so mapped;
        // - the kernel only reads it.
        let result = unsafe { libc::pwritev2(file.as_raw_fd(), pieces, count, offset, flags) };
        let written = u64::try_from(result).map_err(|_| io::Error::last_os_error())?;
        self.advance(written);
        Ok(written)
    }

    fn arguments(&self, offset: u64) -> io::Result<(*const libc::iovec, libc::c_int, libc::off_t)> {
        let too_far = |_| io::Error::from_raw_os_error(libc::EINVAL);
        let pieces = self.iovecs();
        let count = libc::c_int::try_from(pieces.len()).map_err(too_far)?;
        Ok((pieces.as_ptr(), count, libc::off_t::try_from(offset).map_err(too_far)?))
    }
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;
    use vmm_core::fake::FakeVm;

    use super::*;
    use crate::{AddressSpace, Backing, HotplugLayout, HotplugRegion, PAGE, RamRange};

    /// Two regions that touch, and one apart.
    fn memory() -> AddressSpace {
        let space = AddressSpace::new(Arc::new(FakeVm::default()));
        for start in [0, PAGE, 4 * PAGE] {
            let range = RamRange { start, size: PAGE };
            space.map(&[range], &Backing::default()).unwrap();
        }
        space
    }

    fn holder() -> Arc<PinHolder> {
        PinHolder::new("test", |_| ())
    }

    fn pin(space: &AddressSpace, buffers: &[(u64, u64)]) -> Result<PinnedBuffers, PinError> {
        let buffers = buffers.iter().map(|(address, length)| (GuestAddress(*address), *length));
        PinnedBuffers::pin(&space.memory(), &holder(), buffers)
    }

    #[test]
    fn fault_a3_buffers_that_wrap_or_leave_ram_are_refused() {
        let space = memory();
        for (address, length) in
            [(2 * PAGE, 1), (PAGE, PAGE + 1), (u64::MAX, 2), (4 * PAGE, u64::MAX), (4 * PAGE, PAGE + 1)]
        {
            let error = pin(&space, &[(0, 8), (address, length)]).unwrap_err();
            assert_eq!(error, PinError::NoMemory { address, length });
        }
    }

    #[test]
    fn a_buffer_across_regions_is_read_and_written_as_one() {
        let space = memory();
        let mut buffers = pin(&space, &[(4 * PAGE, 2), (PAGE - 3, 6)]).unwrap();
        assert_eq!((buffers.len(), buffers.iovecs().len()), (8, 3));
        assert_eq!(buffers.fill_from(b"abcdefgh and more"), 8);
        assert!(buffers.is_empty() && buffers.iovecs().is_empty());
        let mut back = [0; 6];
        space.memory().read_slice(&mut back, GuestAddress(PAGE - 3)).unwrap();
        assert_eq!(&back, b"cdefgh");
        let mut all = [0; 20];
        assert_eq!(pin(&space, &[(4 * PAGE, 2), (PAGE - 3, 6)]).unwrap().drain_to(&mut all), 8);
        assert_eq!(&all[..8], b"abcdefgh");
    }

    #[test]
    fn what_is_done_with_is_given_up_from_the_front() {
        let space = memory();
        let whole = [(0, 3), (10, 0), (4 * PAGE, 4)];
        for count in 0..=8 {
            let mut buffers = pin(&space, &whole).unwrap();
            let first = buffers.iovecs()[0].iov_base;
            buffers.advance(count);
            assert_eq!(buffers.len(), 7_u64.saturating_sub(count));
            assert_eq!(buffers.pieces().map(|(_, length)| length).sum::<u64>(), buffers.len());
            if count < 3 {
                assert_eq!(buffers.iovecs()[0].iov_base, first.wrapping_byte_add(count as usize));
            }
        }
    }

    #[test]
    fn a_file_is_read_short_at_its_end_and_written_as_asked() {
        let space = memory();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut buffers = pin(&space, &[(PAGE - 2, 4), (4 * PAGE, 4)]).unwrap();
        assert_eq!(buffers.read_from(&file, 4).unwrap(), 6);
        assert_eq!((buffers.len(), buffers.read_from(&file, 10).unwrap()), (2, 0));
        let mut buffers = pin(&space, &[(4 * PAGE, 2), (PAGE - 2, 4)]).unwrap();
        assert_eq!(buffers.write_to(&file, 1, true).unwrap(), 6);
        let mut back = [0; 10];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"0894567789");
        let mut buffers = pin(&space, &[(0, 1)]).unwrap();
        assert_eq!(buffers.read_from(&file, u64::MAX).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn more_pieces_than_a_system_call_takes_are_taken_in_turns() {
        let space = memory();
        let many: Vec<_> = (0..1500).map(|at| (at, 1)).collect();
        let mut buffers = pin(&space, &many).unwrap();
        assert_eq!(buffers.iovecs().len(), 1024);
        buffers.advance(1024);
        assert_eq!(buffers.iovecs().len(), 476);
    }

    #[test]
    fn of_memory_that_is_plugged_only_the_blocks_of_the_buffers_are_pinned() {
        const BLOCK: u64 = 4 * PAGE;
        let space = Arc::new(AddressSpace::new(Arc::new(FakeVm::default())));
        let range = RamRange { start: 0x10_0000, size: 8 * BLOCK };
        let layout = HotplugLayout { range, block_size: BLOCK, chunk_size: 8 * BLOCK };
        let region = HotplugRegion::reserve(&space, layout, &Backing::default()).unwrap();
        region.plug(range).unwrap();
        let block = |index: u64| range.start + index * BLOCK;
        let pieces = [(block(1), 8), (block(1) + 8, 8), (block(4) - 8, 16), (block(3), 8)];
        let mut buffers = pin(&space, &pieces).unwrap();
        assert_eq!(buffers.pins.len(), 2);
        let unplug = |index| region.unplug(RamRange { start: block(index), size: BLOCK });
        for index in [1, 3, 4] {
            assert!(unplug(index).unwrap_err().is_busy(), "block {index}");
        }
        for index in [0, 2, 5] {
            unplug(index).unwrap();
        }
        // What is around has become another region, and the bytes are where they were.
        assert_eq!(buffers.fill_from(b"0123456789abcdef0123456789ABCDEF++++++++"), 40);
        let mut back = [0; 16];
        space.memory().read_slice(&mut back, GuestAddress(block(4) - 8)).unwrap();
        assert_eq!(&back, b"0123456789ABCDEF");
        drop(buffers);
        unplug(3).unwrap();
    }

    #[test]
    fn a_region_is_pinned_as_long_as_a_buffer_is_in_it() {
        let space = memory().with_pin_limit(std::time::Duration::ZERO);
        let buffers = pin(&space, &[(4 * PAGE, 1)]).unwrap();
        let unmap = || space.apply([crate::Change::Unmap(RamRange { start: 4 * PAGE, size: PAGE })]);
        assert!(unmap().unwrap_err().to_string().contains("test"));
        drop(buffers);
        unmap().unwrap();
    }
}
