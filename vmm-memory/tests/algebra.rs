//! The algebra of the address space, against a model that keeps account page by page.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_core::fake::FakeVm;
use vmm_memory::{AddressSpace, Change, ChangeError, HostMemory, RamRange, RamRegion};

const PAGE: u64 = 4096;
/// The guest has addresses of 16 bits: 16 pages.
const BITS: u32 = 16;
const PAGES: usize = 16;

/// A change, in bytes, not yet with memory. Sizes and addresses need not be those of pages.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Map { start: u64, size: u64, read_only: bool },
    Unmap(RamRange),
    Replace { range: RamRange, size: u64 },
    Protect { range: RamRange, read_only: bool },
    Move { range: RamRange, to: u64 },
}

/// What is at a page: of which region, which page of it, and whether the guest can write.
type Page = Option<(u64, u64, bool)>;

/// The naive model. Regions are named by numbers, which are also what is in their memory.
#[derive(Clone, Default)]
struct Model {
    pages: [Page; PAGES],
    next: u64,
}

impl Model {
    fn pages_of(range: RamRange) -> Result<std::ops::Range<usize>, &'static str> {
        let whole = range.start.is_multiple_of(PAGE) && range.size.is_multiple_of(PAGE) && range.size != 0;
        let end = range.start.checked_add(range.size).filter(|_| whole).ok_or("bad")?;
        if end > PAGES as u64 * PAGE {
            return Err("beyond");
        }
        Ok((range.start / PAGE) as usize..(end / PAGE) as usize)
    }

    /// The region that was mapped as `range`.
    fn find(&self, range: RamRange) -> Result<u64, &'static str> {
        let pages = Self::pages_of(range).map_err(|_| "absent")?;
        let Some((region, 0, _)) = self.pages[pages.start] else { return Err("absent") };
        let is_all = self.of(region).eq(pages);
        if is_all { Ok(region) } else { Err("absent") }
    }

    fn of(&self, region: u64) -> impl Iterator<Item = usize> + '_ {
        let is_of = move |page: &Page| page.is_some_and(|(other, ..)| other == region);
        (0..PAGES).filter(move |&at| is_of(&self.pages[at]))
    }

    fn place(&mut self, region: u64, range: RamRange, read_only: bool) -> Result<(), &'static str> {
        let pages = Self::pages_of(range)?;
        if self.pages[pages.clone()].iter().any(Option::is_some) {
            return Err("overlap");
        }
        for (offset, page) in pages.enumerate() {
            self.pages[page] = Some((region, offset as u64, read_only));
        }
        Ok(())
    }

    fn remove(&mut self, region: u64) -> bool {
        let of: Vec<_> = self.of(region).collect();
        of.into_iter()
            .fold(false, |_, page| self.pages[page].take().is_some_and(|(_, _, read_only)| read_only))
    }

    fn apply(&mut self, wish: Wish) -> Result<(), &'static str> {
        match wish {
            Wish::Map { start, size, read_only } => {
                self.next += 1;
                self.place(self.next, RamRange { start, size }, read_only)
            }
            Wish::Unmap(range) => self.find(range).map(|region| {
                self.remove(region);
            }),
            Wish::Replace { range, size } => {
                self.find(range)?;
                if size == range.size { Ok(()) } else { Err("size") }
            }
            Wish::Protect { range, read_only } => {
                let region = self.find(range)?;
                self.remove(region);
                self.place(region, range, read_only)
            }
            Wish::Move { range, to } => {
                let region = self.find(range)?;
                let read_only = self.remove(region);
                self.place(region, RamRange { start: to, ..range }, read_only)
            }
        }
    }
}

fn kind(error: &ChangeError) -> &'static str {
    match error {
        ChangeError::BadRange(_) => "bad",
        ChangeError::BeyondAddressSpace { .. } => "beyond",
        ChangeError::Overlap { .. } => "overlap",
        ChangeError::NotMapped(_) => "absent",
        ChangeError::OtherSize { .. } => "size",
        _ => "another",
    }
}

fn memory(size: u64) -> HostMemory {
    HostMemory::anonymous(size).unwrap()
}

fn change(wish: Wish) -> Change {
    match wish {
        Wish::Map { start, size, read_only } => Change::Map { start, memory: memory(size).into(), read_only },
        Wish::Unmap(range) => Change::Unmap(range),
        Wish::Replace { range, size } => Change::Replace { range, memory: memory(size) },
        Wish::Protect { range, read_only } => Change::Protect { range, read_only },
        Wish::Move { range, to } => Change::Move { range, to },
    }
}

/// Mostly pages of the 16, now and then something that is none, or lies at an end of the address space.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (0..PAGES as u64 + 1).prop_map(|page| page * PAGE),
        1 => 0..PAGES as u64 * PAGE,
        1 => Just(u64::MAX - PAGE + 1),
        1 => Just(u64::MAX),
    ]
}

/// Host memory has whole pages.
fn size() -> impl Strategy<Value = u64> {
    (1u64..5).prop_map(|pages| pages * PAGE)
}

/// A range that may be mapped, by number, or any.
fn known(model: &[RamRange]) -> BoxedStrategy<RamRange> {
    let any = (address(), prop_oneof![8 => size(), 1 => 1..5 * PAGE, 1 => Just(0)]);
    let any = any.prop_map(|(start, size)| RamRange { start, size });
    if model.is_empty() {
        any.boxed()
    } else {
        prop_oneof![6 => prop::sample::select(model.to_vec()), 1 => any].boxed()
    }
}

/// A wish, given where RAM is now.
fn wish(ranges: &[RamRange]) -> BoxedStrategy<Wish> {
    let range = known(ranges);
    let sized = |range: RamRange| {
        let whole = range.size.next_multiple_of(PAGE).max(PAGE);
        prop_oneof![4 => Just(whole), 1 => size()].prop_map(move |size| Wish::Replace { range, size })
    };
    prop_oneof![
        4 => (address(), size(), any::<bool>())
            .prop_map(|(start, size, read_only)| Wish::Map { start, size, read_only }),
        2 => range.clone().prop_map(Wish::Unmap),
        1 => range.clone().prop_filter("memory of that size can be had", |range| range.size < 1 << 40).prop_flat_map(sized),
        1 => (range.clone(), any::<bool>()).prop_map(|(range, read_only)| Wish::Protect { range, read_only }),
        2 => (range, address()).prop_map(|(range, to)| Wish::Move { range, to }),
    ]
    .boxed()
}

/// Wishes for ranges out of a small set, so that later ones meet what earlier ones have left.
fn transactions() -> impl Strategy<Value = Vec<Vec<Wish>>> {
    let range = (0..PAGES as u64, 1u64..5)
        .prop_map(|(page, pages)| RamRange { start: page * PAGE, size: pages * PAGE });
    prop::collection::vec(range, 3).prop_flat_map(|ranges| {
        let from_set = prop::sample::select(ranges.clone()).prop_flat_map(|range| {
            any::<bool>().prop_map(move |read_only| Wish::Map {
                start: range.start,
                size: range.size,
                read_only,
            })
        });
        let one = prop_oneof![1 => from_set, 2 => wish(&ranges)];
        prop::collection::vec(prop::collection::vec(one, 1..4), 1..12)
    })
}

struct World {
    vm: Arc<FakeVm>,
    space: AddressSpace,
    model: Model,
}

impl World {
    fn new() -> Self {
        let vm = Arc::new(FakeVm::default());
        let space = AddressSpace::new(vm.clone()).with_address_bits(BITS);
        Self { vm, space, model: Model::default() }
    }

    fn step(&mut self, wishes: &[Wish]) -> Result<(), TestCaseError> {
        let mut after = self.model.clone();
        let expected = wishes.iter().try_for_each(|&wish| after.apply(wish));
        let result = self.space.apply(wishes.iter().copied().map(change));
        prop_assert_eq!(result.as_ref().map_err(kind).copied(), expected, "{:?}", wishes);
        if result.is_ok() {
            // What is new is empty: it gets its number.
            for (at, page) in after.pages.iter().enumerate() {
                if let Some((region, offset, _)) = page
                    && *region > self.model.next
                {
                    self.space
                        .memory()
                        .write_obj(region << 8 | offset, GuestAddress(at as u64 * PAGE))
                        .unwrap();
                }
            }
            self.model = after;
        }
        self.check()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let table = self.space.memory();
        let slots = self.vm.slots();
        for (at, page) in self.model.pages.iter().enumerate() {
            let address = at as u64 * PAGE;
            let content = table.read_obj::<u64>(GuestAddress(address)).ok();
            prop_assert_eq!(content, page.map(|(region, offset, _)| region << 8 | offset), "page {}", at);
            let slot = slots
                .iter()
                .find(|slot| (slot.guest_address..slot.guest_address + slot.size).contains(&address));
            prop_assert_eq!(slot.map(|slot| slot.read_only), page.map(|(_, _, read_only)| read_only));
        }
        let row = |region: &RamRegion| (region.range(), region.host_address() as u64, region.is_read_only());
        let shown = |slot: &vmm_core::seam::MemorySlot| {
            (RamRange { start: slot.guest_address, size: slot.size }, slot.host_address, slot.read_only)
        };
        prop_assert_eq!(
            table.iter().map(row).collect::<Vec<_>>(),
            slots.iter().map(shown).collect::<Vec<_>>()
        );
        // Numbers are used again.
        let highest = slots.iter().map(|slot| slot.id).max().unwrap_or(0);
        prop_assert!((highest as usize) < PAGES + 4, "slot {}", highest);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn every_transaction_does_what_the_model_does_or_nothing(transactions in transactions()) {
        let mut world = World::new();
        for wishes in &transactions {
            world.step(wishes)?;
        }
    }
}
