//! Pins: what keeps guest RAM in place for requests that outlive a read section.
//!
//! A holder is one user of pins, a queue of a device for example, with a name and a way to ask it for its pins back. It counts
//! its pins itself, block by block, so that holders do not meet on a lock at each request. A block knows the holders
//! that have ever pinned it.
//!
//! The one who unmaps marks the block as leaving, and looks at the counts of all its holders. Whoever pins looks at the mark
//! with its own count locked: either its pin is counted, or it sees the mark. A holder that comes to know the block
//! registers under the lock under which the mark is set, so it is found or sees the mark too.
//!
//! Lock order: `held` of a holder, in it `holders` of a block. Neither is held while somebody is called or, but for
//! `held` by the condition variable itself, waited for.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::block::RamBlock;
use crate::range::RamRange;
use crate::region::RamRegion;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, lock};

/// Guest RAM cannot be pinned: it is about to be unmapped, or to be given other memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest RAM that is about to go cannot be pinned")]
pub struct Leaving;

/// The pins of one block.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// Set under the lock of `holders`. What it orders is ordered by that lock and those of the holders.
    leaving: AtomicBool,
    /// Those that have a count for this block, perhaps of 0.
    holders: Mutex<Vec<Weak<PinHolder>>>,
}

impl Pins {
    /// From now on nobody can pin the block. Holders that have pins are asked for them; `range` is where the block was.
    pub(crate) fn close(self: &Arc<Self>, range: RamRange) {
        let holders: Vec<_> = {
            let mut holders = lock(&self.holders);
            self.leaving.store(true, Ordering::Relaxed);
            holders.retain(|holder| holder.strong_count() != 0);
            holders.iter().filter_map(Weak::upgrade).collect()
        };
        for holder in holders.iter().filter(|holder| holder.count(self) != 0) {
            (holder.cancel)(range);
        }
    }

    /// Lets the block be pinned again.
    pub(crate) fn reopen(&self) {
        let _holders = lock(&self.holders);
        self.leaving.store(false, Ordering::Relaxed);
    }

    /// Who has pins now.
    pub(crate) fn holders(self: &Arc<Self>) -> Vec<String> {
        self.wait_released(Instant::now())
    }

    /// Waits until no pin is left, at most until `deadline`: then it returns the names of those that still have one. To be
    /// called after [`close`](Self::close); before it others may come.
    pub(crate) fn wait_released(self: &Arc<Self>, deadline: Instant) -> Vec<String> {
        let holders: Vec<_> = lock(&self.holders).iter().filter_map(Weak::upgrade).collect();
        holders
            .iter()
            .filter(|holder| !holder.wait_released(self, deadline))
            .map(|holder| holder.name.clone())
            .collect()
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }
}

/// One user of pins.
pub struct PinHolder {
    name: String,
    cancel: Box<dyn Fn(RamRange) + Send + Sync>,
    /// By the address of the block. Grows by one for each block that is pinned for the first time; entries of blocks that are
    /// gone are taken out whenever it would become larger than ever.
    held: Mutex<BTreeMap<usize, Held>>,
    /// The last pin of a block that leaves is gone.
    released: Condvar,
}

/// How often a block is pinned by one holder.
struct Held {
    /// Keeps the address from being used again.
    block: Weak<Pins>,
    count: usize,
}

impl PinHolder {
    /// A holder that errors call `name`. `cancel` is called, on the thread that unmaps, with a range of guest RAM that is
    /// to go while this holder has pins in it: it has the requests there end soon, and does not wait for them.
    #[must_use]
    pub fn new(name: impl Into<String>, cancel: impl Fn(RamRange) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            cancel: Box::new(cancel),
            held: Mutex::new(BTreeMap::new()),
            released: Condvar::new(),
        })
    }

    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn acquire(self: &Arc<Self>, block: &Arc<Pins>) -> Result<(), Leaving> {
        let mut held = lock(&self.held);
        if let Some(known) = held.get_mut(&address(block)).filter(|held| held.is_of(block)) {
            if block.is_leaving() {
                return Err(Leaving);
            }
            known.count = known.count.saturating_add(1);
            return Ok(());
        }
        let mut holders = lock(&block.holders);
        if block.is_leaving() {
            return Err(Leaving);
        }
        holders.push(Arc::downgrade(self));
        drop(holders);
        // Only now and then, so that the first pins of many blocks cost no more than those of one.
        if held.len().is_power_of_two() {
            held.retain(|_, held| held.block.strong_count() != 0);
        }
        held.insert(address(block), Held { block: Arc::downgrade(block), count: 1 });
        Ok(())
    }

    pub(crate) fn release(&self, block: &Arc<Pins>) {
        let mut held = lock(&self.held);
        if let Some(known) = held.get_mut(&address(block)).filter(|held| held.is_of(block)) {
            known.count = known.count.saturating_sub(1);
            if known.count == 0 && block.is_leaving() {
                self.released.notify_all();
            }
        }
    }

    fn count(&self, block: &Arc<Pins>) -> usize {
        Held::count(&lock(&self.held), block)
    }

    /// Whether it has no pin of `block` before `deadline`.
    fn wait_released(&self, block: &Arc<Pins>, deadline: Instant) -> bool {
        let mut held = lock(&self.held);
        while Held::count(&held, block) != 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            held = match self.released.wait_timeout(held, left) {
                Ok((held, _)) => held,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }
}

impl Held {
    fn is_of(&self, block: &Arc<Pins>) -> bool {
        std::ptr::eq(self.block.as_ptr(), Arc::as_ptr(block))
    }

    fn count(all: &BTreeMap<usize, Self>, block: &Arc<Pins>) -> usize {
        all.get(&address(block)).filter(|held| held.is_of(block)).map_or(0, |held| held.count)
    }
}

fn address(block: &Arc<Pins>) -> usize {
    Arc::as_ptr(block) as usize
}

impl fmt::Debug for PinHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinHolder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Keeps a region of guest RAM, to which it dereferences, or the part of it that was asked for, in place and mapped. For
/// requests that are in flight when their read section ends.
#[derive(Debug)]
pub struct RegionPin {
    region: RamRegion,
    /// Units of the block.
    units: Range<usize>,
    holder: Arc<PinHolder>,
}

impl RegionPin {
    /// Pins the units of `region` that have one of `length` bytes from `offset` on.
    pub(crate) fn new(
        region: &RamRegion,
        offset: u64,
        length: u64,
        holder: &Arc<PinHolder>,
    ) -> Result<Self, Leaving> {
        let block = region.block();
        let Range { start: first, end } = units(block, offset, length);
        // Those that it has so far go with it if one cannot be had.
        let mut pin = Self { region: region.clone(), units: first..first, holder: Arc::clone(holder) };
        for pins in block.pins().get(first..end).unwrap_or_default() {
            holder.acquire(pins)?;
            pin.units.end = pin.units.end.saturating_add(1);
        }
        Ok(pin)
    }

    /// Whether somebody waits for this pin to go.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.pins().iter().any(|pins| pins.is_leaving())
    }

    /// Whether it keeps these bytes of `region` in place.
    pub(crate) fn covers(&self, region: &RamRegion, offset: u64, length: u64) -> bool {
        let Range { start, end } = units(region.block(), offset, length);
        Arc::ptr_eq(self.region.block(), region.block()) && self.units.start <= start && end <= self.units.end
    }

    fn pins(&self) -> &[Arc<Pins>] {
        self.region.block().pins().get(self.units.clone()).unwrap_or_default()
    }
}

/// The units of `block` that have one of `length` bytes from `offset` on.
fn units(block: &RamBlock, offset: u64, length: u64) -> Range<usize> {
    let unit_of = |byte: u64| usize::try_from(byte.checked_div(block.unit()).unwrap_or(0)).ok();
    let last = offset.saturating_add(length.saturating_sub(1)).min(block.len().saturating_sub(1));
    let first = unit_of(offset.min(last)).unwrap_or(0);
    first..unit_of(last).map_or(usize::MAX, |unit| unit.saturating_add(1))
}

impl Deref for RegionPin {
    type Target = RamRegion;

    fn deref(&self) -> &RamRegion {
        &self.region
    }
}

impl Drop for RegionPin {
    fn drop(&mut self) {
        for pins in self.pins() {
            self.holder.release(pins);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const RANGE: RamRange = RamRange { start: 0x1000, size: 0x1000 };

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[test]
    fn only_holders_with_pins_are_asked_for_them_and_named() {
        let (sender, asked) = channel();
        let sender = std::sync::Mutex::new(sender);
        let busy = PinHolder::new("busy", move |range| sender.lock().unwrap().send(range).unwrap());
        let idle = PinHolder::new("idle", |_| panic!("it has none"));
        let (block, other) = (Arc::new(Pins::default()), Arc::new(Pins::default()));
        busy.acquire(&block).unwrap();
        busy.acquire(&block).unwrap();
        idle.acquire(&block).unwrap();
        idle.release(&block);
        idle.acquire(&other).unwrap();
        block.close(RANGE);
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), [RANGE]);
        busy.release(&block);
        assert_eq!(block.wait_released(Instant::now()), ["busy"]);
        busy.release(&block);
        assert_eq!(block.wait_released(Instant::now()), [] as [&str; 0]);
    }

    #[test]
    fn what_leaves_cannot_be_pinned_until_it_stays_after_all() {
        let holder = PinHolder::new("holder", |_| ());
        let known = Arc::new(Pins::default());
        holder.acquire(&known).unwrap();
        holder.release(&known);
        for block in [known, Arc::new(Pins::default())] {
            block.close(RANGE);
            assert_eq!(holder.acquire(&block), Err(Leaving));
            block.reopen();
            assert_eq!(holder.acquire(&block), Ok(()));
        }
    }

    #[test]
    fn the_last_pin_wakes_whoever_waits() {
        let holder = PinHolder::new("holder", |_| ());
        let block = Arc::new(Pins::default());
        holder.acquire(&block).unwrap();
        block.close(RANGE);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| block.wait_released(late()));
            std::thread::yield_now();
            holder.release(&block);
            assert_eq!(waiter.join().unwrap(), [] as [&str; 0]);
        });
    }

    #[test]
    fn blocks_and_holders_that_are_gone_are_not_kept_in_mind() {
        let holder = PinHolder::new("holder", |_| ());
        let block = Arc::new(Pins::default());
        for _ in 0..100 {
            let (passing, visitor) = (Arc::new(Pins::default()), PinHolder::new("visitor", |_| ()));
            holder.acquire(&passing).unwrap();
            holder.release(&passing);
            visitor.acquire(&block).unwrap();
            visitor.release(&block);
        }
        block.close(RANGE);
        assert!(lock(&holder.held).len() <= 2);
        assert_eq!(lock(&block.holders).len(), 0);
    }
}
