//! `HotplugLayout`: where memory can be plugged, in which units, and by how much a slot can grow.

use std::ops::Range;

use super::HotplugError;
use crate::PAGE;
use crate::range::RamRange;

/// The addresses of a hotplug region and how they are divided. Checked by whoever makes the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotplugLayout {
    /// The guest-physical addresses; a multiple of the block size in start and size.
    pub range: RamRange,
    /// Bytes that are plugged or not: a power of two, whole pages of the backing (virtio 1.3, 5.15.4: `block_size`).
    pub block_size: u64,
    /// Most bytes of a memory slot, a multiple of the block size. A change touches the slots of the chunks that it is
    /// about and no others.
    pub chunk_size: u64,
}

impl HotplugLayout {
    pub(super) fn check(&self) -> Result<(), HotplugError> {
        let Self { range, block_size, chunk_size } = *self;
        let bad = |why| HotplugError::BadLayout { layout: *self, why };
        if !block_size.is_power_of_two() || block_size < PAGE {
            return Err(bad("the block size is no power of two of at least a page"));
        }
        if chunk_size == 0 || !chunk_size.is_multiple_of(block_size) {
            return Err(bad("a chunk is not made of whole blocks"));
        }
        let is_whole = range.start.is_multiple_of(block_size) && range.size.is_multiple_of(block_size);
        if !is_whole || !range.is_whole_pages() {
            return Err(bad("the range is not made of whole blocks"));
        }
        Ok(())
    }

    /// How many blocks there are.
    pub(super) fn count(&self) -> u64 {
        self.range.size.checked_div(self.block_size).unwrap_or(0)
    }

    pub(super) fn blocks_of_a_chunk(&self) -> u64 {
        self.chunk_size.checked_div(self.block_size).unwrap_or(1)
    }

    /// The numbers of the blocks that are `range`.
    pub(super) fn blocks(&self, range: RamRange) -> Result<Range<u64>, HotplugError> {
        let offset = range.start.checked_sub(self.range.start);
        let end = range.end().zip(self.range.end()).filter(|(end, last)| end <= last);
        let is_whole =
            range.start.is_multiple_of(self.block_size) && range.size.is_multiple_of(self.block_size);
        let bad = HotplugError::NotBlocks { range, layout: *self };
        match offset.filter(|_| is_whole && range.size != 0 && end.is_some()) {
            Some(offset) => {
                let number = |bytes: u64| bytes.checked_div(self.block_size).unwrap_or(0);
                Ok(number(offset)..number(offset.saturating_add(range.size)))
            }
            None => Err(bad),
        }
    }

    /// Where blocks are in the memory behind the region.
    pub(super) fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start.saturating_mul(self.block_size)..blocks.end.saturating_mul(self.block_size)
    }

    /// Where blocks are in the guest.
    pub(super) fn range_of(&self, blocks: &Range<u64>) -> RamRange {
        let Range { start, end } = self.bytes(blocks);
        RamRange { start: self.range.start.saturating_add(start), size: end.saturating_sub(start) }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn layout() -> HotplugLayout {
        let range = RamRange { start: 64 * MIB, size: 32 * MIB };
        HotplugLayout { range, block_size: 2 * MIB, chunk_size: 8 * MIB }
    }

    #[test]
    fn a_layout_that_is_not_made_of_whole_blocks_and_chunks_is_refused() {
        assert!(layout().check().is_ok());
        let range = |start, size| RamRange { start, size };
        let bad = [
            HotplugLayout { block_size: 2048, ..layout() },
            HotplugLayout { block_size: 0, ..layout() },
            HotplugLayout { block_size: 3 * MIB, chunk_size: 3 * MIB, ..layout() },
            HotplugLayout { chunk_size: 0, ..layout() },
            HotplugLayout { chunk_size: 3 * MIB, ..layout() },
            HotplugLayout { range: range(63 * MIB, 32 * MIB), ..layout() },
            HotplugLayout { range: range(64 * MIB, 31 * MIB), ..layout() },
            HotplugLayout { range: range(64 * MIB, 0), ..layout() },
            HotplugLayout { range: range(u64::MAX - 2 * MIB + 1, 4 * MIB), ..layout() },
        ];
        for layout in bad {
            assert!(matches!(layout.check(), Err(HotplugError::BadLayout { .. })), "{layout:?}");
        }
    }

    #[test]
    fn only_whole_blocks_inside_have_numbers() {
        let blocks = |start, size| layout().blocks(RamRange { start, size }).ok();
        assert_eq!(blocks(64 * MIB, 32 * MIB), Some(0..16));
        assert_eq!(blocks(70 * MIB, 4 * MIB), Some(3..5));
        let outside = [(62, 4), (94, 4), (64, 0), (65, 2), (64, 3)];
        for (start, size) in outside {
            assert_eq!(blocks(start * MIB, size * MIB), None, "{start} {size}");
        }
        assert_eq!(blocks(64 * MIB, u64::MAX - 2 * MIB + 1), None);
        assert_eq!(blocks(0, 2 * MIB), None);
        assert_eq!(layout().range_of(&(3..5)), RamRange { start: 70 * MIB, size: 4 * MIB });
    }
}
