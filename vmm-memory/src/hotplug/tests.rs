//! Tests of the hotplug region: what a device that serves a driver's requests can rely on.
#![expect(clippy::single_range_in_vec_init, reason = "lists of runs, some of one run")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_core::fake::FakeVm;

use super::*;
use crate::backing::testing::Vma;
use crate::{BackingKind, Change, PinHolder, Quiesce};

const MIB: u64 = 1 << 20;
const START: u64 = 1 << 32;
const BLOCK: u64 = 2 * MIB;

/// Eight blocks, four in a chunk.
const LAYOUT: HotplugLayout = HotplugLayout {
    range: RamRange { start: START, size: 8 * BLOCK },
    block_size: BLOCK,
    chunk_size: 4 * BLOCK,
};

/// Counts how often the machine stood still.
#[derive(Default)]
struct Machine(AtomicUsize);

impl Quiesce for Machine {
    fn quiesce(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self) {}
}

struct World {
    vm: Arc<FakeVm>,
    space: Arc<AddressSpace>,
    machine: Arc<Machine>,
    region: HotplugRegion,
}

fn world(backing: &Backing) -> World {
    let vm = Arc::new(FakeVm::default());
    let space = Arc::new(AddressSpace::new(vm.clone()));
    let machine = Arc::new(Machine::default());
    space.set_machine(machine.clone());
    let region = HotplugRegion::reserve(&space, LAYOUT, backing).unwrap();
    World { vm, space, machine, region }
}

fn blocks(blocks: Range<u64>) -> RamRange {
    LAYOUT.range_of(&blocks)
}

impl World {
    fn plug(&self, range: Range<u64>) {
        self.region.plug(blocks(range)).unwrap();
    }

    fn unplug(&self, range: Range<u64>) {
        self.region.unplug(blocks(range)).unwrap();
    }

    fn read(&self, address: u64) -> Option<u64> {
        self.space.memory().read_obj(GuestAddress(address)).ok()
    }

    fn write(&self, address: u64, value: u64) {
        self.space.memory().write_obj(value, GuestAddress(address)).unwrap();
    }

    /// The slots, as blocks.
    fn slots(&self) -> Vec<Range<u64>> {
        let mut slots: Vec<_> = self.vm.slots();
        slots.sort_unstable_by_key(|slot| slot.guest_address);
        let block = |address: u64| (address - START) / BLOCK;
        slots.iter().map(|slot| block(slot.guest_address)..block(slot.guest_address + slot.size)).collect()
    }

    fn standstills(&self) -> usize {
        self.machine.0.load(Ordering::Relaxed)
    }

    fn pin(&self, block: u64, holder: &Arc<PinHolder>) -> crate::RegionPin {
        let address = blocks(block..block + 1).start;
        let table = self.space.memory();
        let region = table.find_region(GuestAddress(address)).unwrap();
        region.pin_part(address - region.start_addr().0, 16, holder).unwrap()
    }
}

#[test]
fn nothing_is_there_before_it_is_plugged_and_slots_are_divided_at_chunks() {
    let world = world(&Backing::default());
    assert_eq!((world.slots(), world.region.plugged_size()), (vec![], 0));
    assert_eq!(world.read(START), None);
    world.plug(1..6);
    assert_eq!(world.slots(), [1..4, 4..6]);
    assert_eq!(world.region.plugged_size(), 5 * BLOCK);
    assert_eq!((world.read(START), world.read(START + BLOCK)), (None, Some(0)));
    // Across the slots, RAM is as one.
    world.write(START + 4 * BLOCK - 4, u64::MAX);
    assert_eq!(world.read(START + 4 * BLOCK - 4), Some(u64::MAX));
    assert_eq!(world.read(START + 6 * BLOCK - 4), None);
    assert_eq!(world.standstills(), 0);
}

#[test]
fn what_stays_beside_what_is_unplugged_keeps_its_contents_and_what_comes_again_is_zero() {
    let world = world(&Backing::default());
    world.plug(0..4);
    for block in 0..4 {
        world.write(START + block * BLOCK, block + 1);
    }
    world.unplug(1..2);
    assert_eq!((world.slots(), world.standstills()), (vec![0..1, 2..4], 1));
    let read = |block| world.read(START + block * BLOCK);
    assert_eq!([0, 1, 2, 3].map(read), [Some(1), None, Some(3), Some(4)]);
    // The chunk becomes whole, and with it its slot.
    world.plug(1..2);
    assert_eq!((world.slots(), world.standstills()), (vec![0..4], 2));
    assert_eq!([0, 1, 2, 3].map(read), [Some(1), Some(0), Some(3), Some(4)]);
}

/// Reads a block whenever it is told of a change, in the middle of which it is then.
struct Reader {
    space: std::sync::Weak<AddressSpace>,
    found: std::sync::Mutex<Vec<Option<u64>>>,
}

impl Reader {
    fn read(&self) {
        let space = self.space.upgrade().unwrap();
        let found = space.memory().read_obj(GuestAddress(START + 3 * BLOCK)).ok();
        self.found.lock().unwrap().push(found);
    }
}

impl crate::MemoryObserver for Reader {
    fn name(&self) -> &str {
        "reader"
    }

    fn map(&self, _: &crate::RamRegion) -> Result<(), crate::ObserverError> {
        self.read();
        Ok(())
    }

    fn unmap(&self, _: &crate::RamRegion) -> Result<(), crate::ObserverError> {
        self.read();
        Ok(())
    }
}

/// A device may have a request there at any time, and the machine's standstill is not its own.
#[test]
fn who_reads_the_table_in_the_middle_of_a_change_finds_what_stays() {
    let world = world(&Backing::default());
    world.plug(0..4);
    world.write(START + 3 * BLOCK, 7);
    let found = std::sync::Mutex::default();
    let reader = Arc::new(Reader { space: Arc::downgrade(&world.space), found });
    world.space.add_observer(reader.clone()).unwrap();
    reader.found.lock().unwrap().clear();
    // Divided, and put together again; what fails on the way is as it was.
    world.unplug(1..2);
    world.plug(1..2);
    world.vm.fail_call(world.vm.calls().len(), libc::EINVAL);
    assert!(world.region.unplug(blocks(0..1)).is_err());
    assert_eq!(world.slots(), [0..4]);
    let found = std::mem::take(&mut *reader.found.lock().unwrap());
    assert!(found.len() >= 6 && found.iter().all(|found| *found == Some(7)), "{found:?}");
    assert_eq!(world.read(START + 3 * BLOCK), Some(7));
    // What goes is not found while it is unmapped.
    world.unplug(3..4);
    assert_eq!(reader.found.lock().unwrap().first(), Some(&None));
}

#[test]
fn whole_slots_come_and_go_while_the_guest_runs() {
    let world = world(&Backing::default());
    world.plug(0..2);
    world.plug(2..3);
    world.plug(4..8);
    assert_eq!(world.slots(), [0..2, 2..3, 4..8]);
    world.unplug(2..3);
    world.unplug(4..8);
    world.region.unplug_all().unwrap();
    assert_eq!((world.slots(), world.standstills()), (vec![], 0));
}

#[test]
fn blocks_in_the_wrong_state_and_what_is_no_block_are_refused() {
    let world = world(&Backing::default());
    world.plug(1..3);
    for range in [1..3, 0..2, 2..8] {
        let error = world.region.plug(blocks(range)).unwrap_err();
        assert!(matches!(error, HotplugError::WrongState { .. }) && !error.is_busy(), "{error}");
    }
    for range in [0..1, 0..2, 2..4] {
        let error = world.region.unplug(blocks(range)).unwrap_err();
        assert!(matches!(error, HotplugError::WrongState { .. }), "{error}");
    }
    for (start, size) in [(START + 1, BLOCK), (START, MIB), (START - BLOCK, BLOCK), (START, 0)] {
        let error = world.region.plug(RamRange { start, size }).unwrap_err();
        assert!(matches!(error, HotplugError::NotBlocks { .. }), "{error}");
        assert!(world.region.state(RamRange { start, size }).is_err());
    }
    assert_eq!(world.region.state(blocks(1..3)).unwrap(), BlockState::Plugged);
    assert_eq!(world.region.state(blocks(0..3)).unwrap(), BlockState::Mixed);
    assert_eq!(world.region.state(blocks(3..8)).unwrap(), BlockState::Unplugged);
}

#[test]
fn a_pinned_block_is_busy_and_its_neighbours_are_not() {
    let world = world(&Backing::default());
    world.plug(0..4);
    let (sender, asked) = channel();
    let sender = std::sync::Mutex::new(sender);
    let disk = PinHolder::new("disk0", move |range| sender.lock().unwrap().send(range).unwrap());
    let pin = world.pin(2, &disk);
    for range in [2..3, 1..4, 0..4] {
        let error = world.region.unplug(blocks(range)).unwrap_err();
        let HotplugError::Pinned { range, holders } = &error else { panic!("{error}") };
        assert_eq!((range, holders.as_slice()), (&blocks(2..3), ["disk0".to_owned()].as_slice()));
        assert!(error.is_busy());
    }
    assert!(matches!(world.region.unplug_all(), Err(HotplugError::Pinned { .. })));
    // Nothing was touched, and nobody was asked to hurry.
    assert_eq!((world.slots(), world.standstills(), asked.try_iter().count()), (vec![0..4], 0, 0));
    world.unplug(3..4);
    world.unplug(0..1);
    assert!(world.region.unplug(blocks(2..3)).unwrap_err().is_busy(), "it is in another region now");
    drop(pin);
    world.unplug(2..3);
    world.plug(2..3);
    drop(world.pin(2, &disk));
}

/// The look before may come too early: what counts is who has pins when the readers of the old table are gone.
#[test]
fn a_pin_that_the_look_before_has_missed_fails_the_transaction_and_all_is_as_before() {
    let world = world(&Backing::default());
    world.plug(0..4);
    let disk = PinHolder::new("disk0", |_| ());
    let pin = world.pin(3, &disk);
    let replug = || Replug { leave: vec![blocks(0..4)], come: vec![(START, world.region.block(&(0..1)))] };
    let error = world.space.replug(replug()).unwrap_err();
    assert!(matches!(&error, ChangeError::Pinned { range, .. } if *range == blocks(3..4)), "{error}");
    assert_eq!((world.slots(), world.read(START)), (vec![0..4], Some(0)));
    drop((0..4).map(|block| world.pin(block, &disk)).collect::<Vec<_>>());
    drop(pin);
    world.space.replug(replug()).unwrap();
    assert_eq!(world.slots(), [0..1]);
}

#[test]
fn nobody_else_maps_anything_there_or_changes_what_is_plugged() {
    let world = world(&Backing::default());
    world.plug(0..4);
    let memory = || HostMemory::anonymous(4 * BLOCK).unwrap();
    let map = |start| Change::Map { start, memory: memory().into(), read_only: false };
    world.space.apply([map(START - 4 * BLOCK)]).unwrap();
    for start in [START + 4 * BLOCK, START, START - BLOCK] {
        let error = world.space.apply([map(start)]).unwrap_err();
        assert!(matches!(error, ChangeError::Reserved { .. } | ChangeError::Overlap { .. }), "{error}");
    }
    let away = RamRange { start: START - 4 * BLOCK, size: 4 * BLOCK };
    let to = START + 4 * BLOCK;
    assert!(matches!(
        world.space.apply([Change::Move { range: away, to }]),
        Err(ChangeError::Reserved { .. })
    ));
    let plugged = blocks(0..4);
    for change in [
        Change::Unmap(plugged),
        Change::Move { range: plugged, to: 0 },
        Change::Protect { range: plugged, read_only: true },
        Change::Replace { range: plugged, memory: memory() },
    ] {
        let error = world.space.apply([change]).unwrap_err();
        assert!(matches!(error, ChangeError::Plugged(_)), "{error}");
    }
    let again = HotplugRegion::reserve(&world.space, LAYOUT, &Backing::default());
    assert!(matches!(
        again,
        Err(HotplugError::Change(ChangeError::Overlap { .. } | ChangeError::Reserved { .. }))
    ));
    drop(world.region);
    assert_eq!(world.vm.slots().len(), 1);
    world.space.apply([map(START)]).unwrap();
}

#[test]
fn a_slot_that_kvm_refuses_leaves_all_as_it_was() {
    // Calls to KVM: 0 plugs; 1 deletes, 2 and 3 make the rest.
    for call in 1..=3 {
        let world = world(&Backing::default());
        world.plug(0..4);
        world.write(START + 2 * BLOCK, 7);
        world.vm.fail_call(call, libc::EINVAL);
        let error = world.region.unplug(blocks(1..2)).unwrap_err();
        assert!(matches!(error, HotplugError::Change(ChangeError::Slot { .. })), "{call}: {error}");
        assert_eq!((world.slots(), world.read(START + 2 * BLOCK)), (vec![0..4], Some(7)), "{call}");
        assert_eq!(world.region.state(blocks(0..4)).unwrap(), BlockState::Plugged);
        world.unplug(1..2);
    }
}

#[test]
fn memory_that_is_not_plugged_is_not_resident_whatever_backs_it() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * BLOCK).unwrap();
    let file = Arc::new(file);
    let kinds = [
        BackingKind::Anonymous,
        BackingKind::Memfd,
        BackingKind::File { file: Arc::clone(&file), shared: true, offset: 0 },
    ];
    for kind in kinds {
        let backing = Backing { prefault: true, ..Backing::new(kind) };
        let world = world(&backing);
        let resident = || Vma::at(world.region.memory.as_ptr() as usize).unwrap().bytes("Rss");
        assert_eq!(resident(), 0, "{backing:?}");
        world.plug(1..2);
        assert_eq!(resident(), BLOCK, "{backing:?}");
        world.write(START + BLOCK, 7);
        world.unplug(1..2);
        assert_eq!(resident(), 0, "{backing:?}");
        world.plug(1..2);
        assert_eq!(world.read(START + BLOCK), Some(0), "{backing:?}");
    }
}

#[test]
fn others_share_a_plugged_block_by_the_right_part_of_its_file() {
    let world = world(&Backing::new(BackingKind::Memfd));
    world.plug(1..2);
    world.plug(5..6);
    let table = world.space.memory();
    let offset = |block: u64| {
        let region = table.find_region(GuestAddress(START + block * BLOCK)).unwrap();
        region.file_offset().map(vm_memory::FileOffset::start)
    };
    assert_eq!((offset(1), offset(5)), (Some(BLOCK), Some(5 * BLOCK)));
}
