//! `RamRegion`: guest RAM at a guest-physical address, as readers of the table see it.
#![expect(unsafe_code, reason = "gives access to mapped memory")]

use std::sync::Arc;

use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::guest_memory::Result;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use crate::PAGE;
use crate::backing::DiscardError;
use crate::block::RamBlock;
use crate::dirty::DirtyMap;
use crate::pin::{Leaving, PinHolder, RegionPin};
use crate::range::RamRange;

/// Bytes of guest RAM; what is written through it is tracked.
pub type RamSlice<'a> = VolatileSlice<'a, BS<'a, DirtyMap>>;

/// A contiguous range of guest RAM and the host memory behind it, which it keeps mapped.
///
/// A region is immutable: what moves, becomes read-only or gets other memory is another region in the next table.
#[derive(Clone, Debug)]
pub struct RamRegion {
    range: RamRange,
    read_only: bool,
    block: Arc<RamBlock>,
}

impl RamRegion {
    /// `range` has the size of `block`.
    pub(crate) fn new(range: RamRange, read_only: bool, block: Arc<RamBlock>) -> Self {
        debug_assert_eq!(block.len(), range.size);
        Self { range, read_only, block }
    }

    /// Where it is in the guest.
    #[must_use]
    pub fn range(&self) -> RamRange {
        self.range
    }

    /// Whether stores of the guest become MMIO exits. Loaders and devices can write all the same; a device for which that
    /// is wrong has to ask here.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The first byte, for those who hand it to the kernel: slots, vhost, VFIO.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.block.as_ptr()
    }

    /// Keeps the region in place for a request that outlives this read section. It is not unmapped, nor given other memory,
    /// before `holder` has dropped the pin.
    ///
    /// # Errors
    /// [`Leaving`] if it is about to go. Inside the read section in which the region was looked up that cannot be.
    pub fn pin(&self, holder: &Arc<PinHolder>) -> std::result::Result<RegionPin, Leaving> {
        RegionPin::new(self, 0, self.range.size, holder)
    }

    /// The same for a request that accesses only `length` bytes from `offset` on: of memory that is plugged, other blocks can
    /// go meanwhile.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    pub fn pin_part(
        &self,
        offset: u64,
        length: u64,
        holder: &Arc<PinHolder>,
    ) -> std::result::Result<RegionPin, Leaving> {
        RegionPin::new(self, offset, length, holder)
    }

    /// Size in bytes of the host's pages behind it, of which its first byte begins one: the unit of
    /// [`discard`](Self::discard).
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.block.memory().page_size()
    }

    /// Whether what was discarded reads as zero. Of a private file it reads as the file does.
    #[must_use]
    pub fn is_zero_when_discarded(&self) -> bool {
        self.block.memory().is_zero_when_discarded()
    }

    /// Gives `length` bytes from `offset` on back to the host, both multiples of [`page_size`](Self::page_size), as
    /// [`HostMemory::discard`](crate::HostMemory::discard) says. The addresses stay mapped: the next touch brings a new page. Who
    /// logs dirty pages finds them written to.
    ///
    /// # Errors
    /// [`DiscardError`]; with [`DiscardError::Host`] a part may have been given back.
    pub fn discard(&self, offset: u64, length: u64) -> std::result::Result<(), DiscardError> {
        let size = self.block.len();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(DiscardError::Outside { offset, length, size });
        }
        let discarded = self.block.memory().discard(self.block.offset().saturating_add(offset), length);
        // Also after a failure, which may be one of a part.
        if let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(length)) {
            self.marks(offset).mark_dirty(0, length);
        }
        discarded
    }

    pub(crate) fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// Whether all of it is in `other` too: the same addresses with the same memory and protection.
    pub(crate) fn is_part_of(&self, other: &Self) -> bool {
        let offset = self.range.start.checked_sub(other.range.start);
        let is_inside = self.range.end().zip(other.range.end()).is_some_and(|(end, last)| end <= last);
        let is_same_memory = self.block.is_of(&other.block)
            && offset.and_then(|offset| other.block.offset().checked_add(offset))
                == Some(self.block.offset());
        is_inside && is_same_memory && self.read_only == other.read_only
    }

    /// Where writes from `offset` on are marked.
    fn marks(&self, offset: usize) -> BS<'_, DirtyMap> {
        let first = usize::try_from(self.block.offset()).unwrap_or(usize::MAX);
        self.block.memory().dirty().slice_at(first.saturating_add(offset))
    }

    fn bytes(&self, offset: usize, count: usize) -> Option<RamSlice<'_>> {
        let end = u64::try_from(offset.checked_add(count)?).ok()?;
        (end <= self.block.len()).then(|| {
            // SAFETY:
            // - `offset` is at most the length of the block, which lies in its mapping.
            let start = unsafe { self.block.as_ptr().add(offset) };
            // SAFETY:
            // - `count` bytes from there are inside the block, as `end` is;
            // - the mapping lives as long as the block, which `self` owns a share of;
            // - guest RAM is accessed by volatile accesses only, here as everywhere.
            unsafe { VolatileSlice::with_bitmap(start, count, self.marks(offset), None) }
        })
    }

    /// Copies what is in `from`, of the same size, to here. Pages of zeros are left out where there are zeros already, so that
    /// they do not come to need memory.
    pub(crate) fn copy_contents(&self, from: &Self) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let fresh = self.block.memory().file().is_none();
        let mut page = ZEROS;
        for offset in (0..self.range.size).step_by(page.len()) {
            from.get_slice(MemoryRegionAddress(offset), page.len())?.copy_to(&mut page);
            if !fresh || page != ZEROS {
                self.get_slice(MemoryRegionAddress(offset), page.len())?.copy_from(&page);
            }
        }
        Ok(())
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = DirtyMap;

    fn len(&self) -> GuestUsize {
        self.range.size
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.start)
    }

    fn bitmap(&self) -> BS<'_, DirtyMap> {
        self.marks(0)
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8> {
        let offset = usize::try_from(address.0).ok();
        let byte = offset.and_then(|offset| self.bytes(offset, 1));
        byte.map(|byte| byte.ptr_guard_mut().as_ptr()).ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.block.shared_file.as_ref()
    }

    fn is_hugetlbfs(&self) -> Option<bool> {
        Some(self.block.memory().page_size() != PAGE)
    }

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<RamSlice<'_>> {
        let offset = usize::try_from(offset.0).ok();
        offset.and_then(|offset| self.bytes(offset, count)).ok_or(GuestMemoryError::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::backing::HostMemory;

    fn region(start: u64, pages: u64) -> RamRegion {
        let range = RamRange { start, size: pages * PAGE };
        RamRegion::new(range, false, RamBlock::new(HostMemory::anonymous(range.size).unwrap()))
    }

    #[test]
    fn an_access_that_leaves_the_region_is_refused() {
        let region = region(0x10_0000, 2);
        for (offset, count) in
            [(0, 2 * PAGE + 1), (2 * PAGE, 1), (PAGE, PAGE + 1), (u64::MAX, 1), (1, u64::MAX)]
        {
            assert!(region.get_slice(MemoryRegionAddress(offset), count as usize).is_err(), "{offset:#x}");
        }
        assert_eq!(region.get_slice(MemoryRegionAddress(2 * PAGE), 0).unwrap().len(), 0);
        assert!(region.get_host_address(MemoryRegionAddress(2 * PAGE)).is_err());
        let last = region.get_host_address(MemoryRegionAddress(2 * PAGE - 1)).unwrap();
        assert_eq!(last as usize, region.host_address() as usize + 2 * PAGE as usize - 1);
    }

    #[test]
    fn what_is_discarded_reads_as_zero_and_nothing_beyond_the_region_goes() {
        let region = region(0x10_0000, 3);
        for page in 0..3 {
            region.write_slice(b"full", MemoryRegionAddress(page * PAGE)).unwrap();
        }
        assert_eq!((region.page_size(), region.is_zero_when_discarded()), (PAGE, true));
        region.discard(PAGE, PAGE).unwrap();
        let read = |page: u64| {
            let mut bytes = [0; 4];
            region.read_slice(&mut bytes, MemoryRegionAddress(page * PAGE)).unwrap();
            bytes
        };
        assert_eq!([read(0), read(1), read(2)], [*b"full", [0; 4], *b"full"]);
        for (offset, length) in [(2 * PAGE, 2 * PAGE), (3 * PAGE, PAGE), (u64::MAX, PAGE), (PAGE, u64::MAX)] {
            let error = region.discard(offset, length).unwrap_err();
            assert!(matches!(error, DiscardError::Outside { .. }), "{error}");
        }
        for (offset, length) in [(1, PAGE), (0, PAGE - 1)] {
            let error = region.discard(offset, length).unwrap_err();
            assert!(matches!(error, DiscardError::NotPages { .. }), "{error}");
        }
        assert_eq!(read(2), *b"full");
    }

    #[test]
    fn a_part_of_a_mapping_discards_its_own_pages_and_logs_them() {
        let memory = Arc::new(HostMemory::anonymous(4 * PAGE).unwrap());
        let part = RamBlock::part(&memory, 2 * PAGE, PAGE, &[Arc::default(), Arc::default()]);
        let range = RamRange { start: 0, size: 2 * PAGE };
        let part = RamRegion::new(range, false, Arc::new(part));
        let all = RamBlock::part(&memory, 0, PAGE, &[Arc::default(), Arc::default()]);
        let all = RamRegion::new(range, false, Arc::new(all));
        memory.dirty().start();
        part.write_slice(b"x", MemoryRegionAddress(0)).unwrap();
        all.write_slice(b"y", MemoryRegionAddress(0)).unwrap();
        part.discard(PAGE, PAGE).unwrap();
        let dirty = [0, 1, 2, 3].map(|page| memory.dirty().dirty_at(page * PAGE as usize));
        assert_eq!(dirty, [true, false, true, true]);
        part.discard(0, PAGE).unwrap();
        let (mut one, mut other) = ([0], [0]);
        part.read_slice(&mut one, MemoryRegionAddress(0)).unwrap();
        all.read_slice(&mut other, MemoryRegionAddress(0)).unwrap();
        assert_eq!((one, other), ([0], *b"y"));
    }

    #[test]
    fn contents_are_copied_whole_and_zeros_need_no_memory() {
        let (from, to) = (region(0, 3), region(0x10_0000, 3));
        from.write_slice(b"one", MemoryRegionAddress(PAGE - 1)).unwrap();
        to.copy_contents(&from).unwrap();
        let mut back = [0; 3];
        to.read_slice(&mut back, MemoryRegionAddress(PAGE - 1)).unwrap();
        assert_eq!(&back, b"one");
        let mut resident = [0u8; 3];
        let start = to.host_address().cast();
        // SAFETY:
        // - the three pages are mapped, and there is a byte for each.
        assert_eq!(unsafe { libc::mincore(start, 3 * PAGE as usize, resident.as_mut_ptr()) }, 0);
        assert_eq!(resident.map(|page| page & 1), [1, 1, 0]);
    }
}
