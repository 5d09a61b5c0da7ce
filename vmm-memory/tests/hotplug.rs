//! Memory that is plugged and unplugged, against a model that keeps account block by block.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_core::fake::FakeVm;
use vmm_memory::{
    AddressSpace, Backing, BlockState, HotplugError, HotplugLayout, HotplugRegion, PinHolder, RamRange,
    RegionPin,
};

const PAGE: u64 = 4096;
const START: u64 = 0x10_0000;
const COUNT: u64 = 13;
const LAYOUT: HotplugLayout = HotplugLayout {
    range: RamRange { start: START, size: COUNT * PAGE },
    block_size: PAGE,
    chunk_size: 4 * PAGE,
};

/// What a driver or a device does; blocks by number.
#[derive(Clone, Copy, Debug)]
enum Action {
    Plug(u64, u64),
    Unplug(u64, u64),
    UnplugAll,
    Pin(u64),
    Release,
}

fn action() -> impl Strategy<Value = Action> {
    let part = || (0..COUNT).prop_flat_map(|first| (Just(first), 1..=COUNT - first));
    prop_oneof![
        8 => part().prop_map(|(first, count)| Action::Plug(first, count)),
        8 => part().prop_map(|(first, count)| Action::Unplug(first, count)),
        1 => Just(Action::UnplugAll),
        2 => (0..COUNT).prop_map(Action::Pin),
        2 => Just(Action::Release),
    ]
}

/// The naive model: what is in each block that is plugged, and which are pinned.
#[derive(Default)]
struct Model {
    blocks: [Option<u64>; COUNT as usize],
    pinned: Vec<u64>,
}

impl Model {
    /// What a change of these blocks, of which all should be plugged or not, has to end in.
    fn expected(&self, first: u64, count: u64, plugged: bool) -> Expected {
        let all = || first..first + count;
        if all().any(|block| self.blocks[block as usize].is_some() != plugged) {
            Expected::WrongState
        } else if all().any(|block| self.pinned.contains(&block)) {
            Expected::Busy
        } else {
            Expected::Done
        }
    }

    fn state(&self, first: u64, count: u64) -> BlockState {
        let plugged = (first..first + count).filter(|block| self.blocks[*block as usize].is_some()).count();
        match plugged as u64 {
            0 => BlockState::Unplugged,
            all if all == count => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Done,
    WrongState,
    Busy,
}

fn outcome(result: Result<(), HotplugError>) -> Expected {
    match result {
        Ok(()) => Expected::Done,
        Err(HotplugError::WrongState { .. }) => Expected::WrongState,
        Err(error) if error.is_busy() => Expected::Busy,
        Err(error) => panic!("{error}"),
    }
}

struct World {
    vm: Arc<FakeVm>,
    space: Arc<AddressSpace>,
    region: HotplugRegion,
    holder: Arc<PinHolder>,
    pins: Vec<RegionPin>,
    model: Model,
    written: u64,
}

fn range(first: u64, count: u64) -> RamRange {
    RamRange { start: START + first * PAGE, size: count * PAGE }
}

impl World {
    fn new() -> Self {
        let vm = Arc::new(FakeVm::default());
        let space = Arc::new(AddressSpace::new(vm.clone()));
        let region = HotplugRegion::reserve(&space, LAYOUT, &Backing::default()).unwrap();
        let holder = PinHolder::new("disk0", |_| ());
        Self { vm, space, region, holder, pins: Vec::new(), model: Model::default(), written: 0 }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Plug(first, count) => {
                let expected = self.model.expected(first, count, false);
                assert_eq!(outcome(self.region.plug(range(first, count))), expected);
                if expected == Expected::Done {
                    (first..first + count).for_each(|block| self.model.blocks[block as usize] = Some(0));
                }
            }
            Action::Unplug(first, count) => {
                let expected = self.model.expected(first, count, true);
                assert_eq!(outcome(self.region.unplug(range(first, count))), expected);
                if expected == Expected::Done {
                    (first..first + count).for_each(|block| self.model.blocks[block as usize] = None);
                }
            }
            Action::UnplugAll => {
                let is_free = self.model.pinned.is_empty();
                assert_eq!(outcome(self.region.unplug_all()) == Expected::Done, is_free);
                if is_free {
                    self.model.blocks = Default::default();
                }
            }
            Action::Pin(block) => {
                let table = self.space.memory();
                let address = range(block, 1).start;
                if let Some(region) = table.find_region(GuestAddress(address)) {
                    let offset = address - region.range().start;
                    self.pins.push(region.pin_part(offset, PAGE, &self.holder).unwrap());
                    self.model.pinned.push(block);
                }
            }
            Action::Release => {
                self.pins.clear();
                self.model.pinned.clear();
            }
        }
    }

    /// Everybody sees what the model has, and each block that is plugged gets new contents.
    fn check(&mut self) {
        let table = self.space.memory();
        for (block, expected) in (0..).zip(&mut self.model.blocks) {
            let address = GuestAddress(range(block, 1).start);
            assert_eq!(table.read_obj::<u64>(address).ok(), *expected, "block {block}");
            if let Some(value) = expected {
                self.written += 1;
                *value = self.written;
                table.write_obj(self.written, address).unwrap();
            }
        }
        let mut seen = [false; COUNT as usize];
        for slot in self.vm.slots() {
            let first = (slot.guest_address - START) / PAGE;
            let end = first + slot.size / PAGE;
            assert!(first / 4 == (end - 1) / 4, "a slot of several chunks: {slot:?}");
            for block in first..end {
                assert!(!std::mem::replace(&mut seen[block as usize], true), "in two slots: {block}");
            }
        }
        assert_eq!(seen, self.model.blocks.map(|block| block.is_some()));
        let plugged = seen.iter().filter(|seen| **seen).count() as u64;
        assert_eq!(self.region.plugged_size(), plugged * PAGE);
        for first in 0..COUNT {
            for count in 1..=COUNT - first {
                let state = self.region.state(range(first, count)).unwrap();
                assert_eq!(state, self.model.state(first, count), "{first} {count}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_is_what_the_model_says(actions in prop::collection::vec(action(), 1..40)) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
            world.check();
        }
        let World { vm, region, pins, .. } = world;
        drop(pins);
        drop(region);
        assert_eq!(vm.slots(), []);
    }
}
