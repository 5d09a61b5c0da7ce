//! `HotplugRegion`: guest RAM that is plugged and unplugged block by block, as virtio-mem has it (virtio 1.3, 5.15).
//!
//! Guest-physical and host addresses are reserved for the whole region at the beginning. A block that is plugged is in a memory
//! slot and in the table; one that is not is in neither, so what the guest or a device does there is what it is in any
//! hole: the guest reads ones, a device gets an error. Slots are runs of blocks within a chunk: see `blocks.rs`.

mod blocks;
mod error;
mod layout;
#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::address_space::{AddressSpace, Replug};
use crate::backing::{Backing, HostMemory};
use crate::block::RamBlock;
use crate::change::ChangeError;
use crate::pin::Pins;
use crate::range::RamRange;
use crate::sync::{Mutex, lock};
use blocks::{Blocks, Difference};

pub use blocks::BlockState;
pub use error::HotplugError;
pub use layout::HotplugLayout;

/// A region of guest-physical addresses in which memory is plugged. Dropped, it unplugs everything.
///
/// One change at a time: another one meanwhile is refused as busy. No lock is held while a change waits.
pub struct HotplugRegion {
    space: Arc<AddressSpace>,
    layout: HotplugLayout,
    memory: Arc<HostMemory>,
    /// Pages are made when they are plugged.
    prefault: bool,
    state: Mutex<State>,
}

struct State {
    blocks: Blocks,
    /// Of each block, plugged or not. What was unplugged gets others: those that it had are closed.
    pins: Vec<Arc<Pins>>,
    changing: bool,
}

impl HotplugRegion {
    /// Reserves the addresses of `layout`, with nothing plugged. With `prefault`, `backing` means the blocks that are plugged, when
    /// they are. Huge pages of a fixed size are set aside for the whole region at once: the pool has them, or this fails.
    ///
    /// # Errors
    /// [`HotplugError::BadLayout`], [`HotplugError::Reserve`]; [`HotplugError::Change`] where RAM or another reservation is.
    pub fn reserve(
        space: &Arc<AddressSpace>,
        layout: HotplugLayout,
        backing: &Backing,
    ) -> Result<Self, HotplugError> {
        layout.check()?;
        let range = layout.range;
        let none_yet = Backing { prefault: false, ..backing.clone() };
        let memory = HostMemory::reserve(&none_yet, range.size);
        let memory = memory.map_err(|source| HotplugError::Reserve { range, source })?;
        if !layout.block_size.is_multiple_of(memory.page_size()) {
            return Err(HotplugError::BadLayout { layout, why: "a block is not made of whole pages" });
        }
        space.reserve(range)?;
        let blocks = Blocks::new(layout.count(), layout.blocks_of_a_chunk());
        let pins = (0..layout.count()).map(|_| Arc::default()).collect();
        Ok(Self {
            space: Arc::clone(space),
            layout,
            memory: Arc::new(memory),
            prefault: backing.prefault,
            state: Mutex::new(State { blocks, pins, changing: false }),
        })
    }

    /// Where it is and how it is divided.
    #[must_use]
    pub fn layout(&self) -> HotplugLayout {
        self.layout
    }

    /// Bytes that are plugged, or were and are not yet given back to the host.
    #[must_use]
    pub fn plugged_size(&self) -> u64 {
        lock(&self.state).blocks.plugged().saturating_mul(self.layout.block_size)
    }

    /// Whether the blocks of `range` are plugged. Those that a change is about are what they were before it.
    ///
    /// # Errors
    /// [`HotplugError::NotBlocks`].
    pub fn state(&self, range: RamRange) -> Result<BlockState, HotplugError> {
        let blocks = self.layout.blocks(range)?;
        Ok(lock(&self.state).blocks.state(&blocks))
    }

    /// Plugs the blocks of `range`, all of which are unplugged. They read as zero, or as their file does. The machine stands still
    /// for a moment if that makes a chunk whole that some blocks had been plugged in before.
    ///
    /// # Errors
    /// Any [`HotplugError`] but for `BadLayout`.
    pub fn plug(&self, range: RamRange) -> Result<(), HotplugError> {
        let blocks = self.layout.blocks(range)?;
        let change = ChangeOfBlocks::begin(self, range, &blocks, BlockState::Unplugged)?;
        let difference = lock(&self.state).blocks.to_plug(&blocks);
        let bytes = self.layout.bytes(&blocks);
        if self.prefault
            && let Err(source) = self.memory.populate(bytes.clone())
        {
            self.give_back(bytes);
            return Err(HotplugError::Reserve { range, source });
        }
        change.make(&difference).inspect_err(|_| self.give_back(bytes))?;
        change.is_made(&difference);
        Ok(())
    }

    /// Unplugs the blocks of `range`, all of which are plugged, and gives their memory back to the host. The machine stands still for a
    /// moment if blocks beside them stay that are in the same slot.
    ///
    /// # Errors
    /// Any [`HotplugError`] but for `BadLayout`; [`HotplugError::Pinned`] at once where a device has requests in flight.
    pub fn unplug(&self, range: RamRange) -> Result<(), HotplugError> {
        let blocks = self.layout.blocks(range)?;
        let change = ChangeOfBlocks::begin(self, range, &blocks, BlockState::Plugged)?;
        self.refuse_pinned(&blocks)?;
        let difference = lock(&self.state).blocks.to_unplug(&blocks);
        change.make(&difference)?;
        // They count as plugged as long as the host does not have them back.
        self.release(&blocks);
        change.is_made(&difference);
        Ok(())
    }

    /// Unplugs whatever is plugged.
    ///
    /// # Errors
    /// As [`unplug`](Self::unplug).
    pub fn unplug_all(&self) -> Result<(), HotplugError> {
        let all = 0..self.layout.count();
        let change = ChangeOfBlocks::exclusive(self)?;
        self.refuse_pinned(&all)?;
        let difference = lock(&self.state).blocks.to_unplug(&all);
        change.make(&difference)?;
        difference.leave.iter().for_each(|run| self.release(run));
        change.is_made(&difference);
        Ok(())
    }

    /// Looks for requests in flight before anything is touched. Those that come between here and the end of the grace period make the
    /// transaction fail.
    fn refuse_pinned(&self, blocks: &Range<u64>) -> Result<(), HotplugError> {
        let pins = self.pins(blocks);
        for (number, pins) in (blocks.start..).zip(&pins) {
            let holders = pins.holders();
            if !holders.is_empty() {
                let range = self.layout.range_of(&(number..number.saturating_add(1)));
                return Err(HotplugError::Pinned { range, holders });
            }
        }
        Ok(())
    }

    /// What nobody has any more: its memory goes back, and when it comes again it can be pinned again.
    fn release(&self, blocks: &Range<u64>) {
        self.give_back(self.layout.bytes(blocks));
        let mut state = lock(&self.state);
        let (start, end) = (index(blocks.start), index(blocks.end));
        if let Some(pins) = state.pins.get_mut(start..end) {
            pins.fill_with(Arc::default);
        }
    }

    /// The guest has no right to the memory any more, so a failure costs the host memory and nobody else.
    fn give_back(&self, bytes: Range<u64>) {
        if let Err(error) = self.memory.discard(bytes.start, bytes.end.saturating_sub(bytes.start)) {
            tracing::error!(%error, "memory that is not plugged is not given back");
        }
    }

    fn pins(&self, blocks: &Range<u64>) -> Vec<Arc<Pins>> {
        let state = lock(&self.state);
        state.pins.get(index(blocks.start)..index(blocks.end)).unwrap_or_default().to_vec()
    }

    fn block(&self, run: &Range<u64>) -> Arc<RamBlock> {
        let offset = self.layout.bytes(run).start;
        Arc::new(RamBlock::part(&self.memory, offset, self.layout.block_size, &self.pins(run)))
    }
}

/// A change of a region, and nobody else's. Dropped, it is over.
struct ChangeOfBlocks<'a>(&'a HotplugRegion);

impl<'a> ChangeOfBlocks<'a> {
    /// Of `blocks`, which are `range`, if they are all in the state `from`.
    fn begin(
        region: &'a HotplugRegion,
        range: RamRange,
        blocks: &Range<u64>,
        from: BlockState,
    ) -> Result<Self, HotplugError> {
        let change = Self::exclusive(region)?;
        let state = lock(&region.state).blocks.state(blocks);
        if state == from { Ok(change) } else { Err(HotplugError::WrongState { range, state }) }
    }

    fn exclusive(region: &'a HotplugRegion) -> Result<Self, HotplugError> {
        let mut state = lock(&region.state);
        if std::mem::replace(&mut state.changing, true) {
            Err(HotplugError::Changing)
        } else {
            Ok(Self(region))
        }
    }

    /// Changes the address space.
    fn make(&self, difference: &Difference) -> Result<(), HotplugError> {
        let region = self.0;
        if *difference == Difference::default() {
            return Ok(());
        }
        let leave = difference.leave.iter().map(|run| region.layout.range_of(run)).collect();
        let come = difference
            .come
            .iter()
            .map(|run| (region.layout.range_of(run).start, region.block(run)))
            .collect();
        region.space.replug(Replug { leave, come }).map_err(|error| match error {
            ChangeError::Pinned { range, holders, .. } => HotplugError::Pinned { range, holders },
            error => error.into(),
        })
    }

    /// Blocks are in their new state from now on.
    fn is_made(&self, difference: &Difference) {
        lock(&self.0.state).blocks.apply(difference);
    }
}

impl Drop for ChangeOfBlocks<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).changing = false;
    }
}

impl Drop for HotplugRegion {
    /// Memory that cannot be unplugged stays in the guest until the address space goes, and its addresses stay reserved.
    fn drop(&mut self) {
        match self.unplug_all() {
            Ok(()) => self.space.end_reservation(self.layout.range),
            Err(error) => {
                tracing::error!(range = %self.layout.range, %error, "a hotplug region cannot be taken out of the guest");
            }
        }
    }
}

/// The position of a block.
fn index(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}
