//! Tests of the address space: what its callers can rely on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_core::fake::FakeVm;

use super::*;
use crate::{BackingKind, MemoryObserver, ObserverError, PinHolder, RamRegion};

const MIB: u64 = 1 << 20;

fn range(start: u64, size: u64) -> RamRange {
    RamRange { start, size }
}

fn map(space: &AddressSpace, ranges: &[RamRange]) -> Result<(), ChangeError> {
    space.map(ranges, &Backing::default())
}

fn memory(size: u64) -> HostMemory {
    HostMemory::anonymous(size).unwrap()
}

fn space() -> (Arc<FakeVm>, AddressSpace) {
    let vm = Arc::new(FakeVm::default());
    let space = AddressSpace::new(vm.clone());
    (vm, space)
}

fn read(space: &AddressSpace, address: u64) -> Option<u64> {
    space.memory().read_obj(GuestAddress(address)).ok()
}

fn write(space: &AddressSpace, address: u64, value: u64) {
    space.memory().write_obj(value, GuestAddress(address)).unwrap();
}

#[test]
fn mapped_ram_reads_as_zero_and_keeps_what_is_written() {
    let (_, space) = space();
    map(&space, &[range(1 << 32, MIB), range(0, MIB)]).unwrap();
    assert_eq!(read(&space, 0x1000), Some(0));
    write(&space, (1 << 32) + MIB - 8, 7);
    assert_eq!(read(&space, (1 << 32) + MIB - 8), Some(7));
    assert_eq!(read(&space, MIB), None);
    assert_eq!(space.ranges(), [range(0, MIB), range(1 << 32, MIB)]);
}

#[test]
fn dropping_the_address_space_deletes_every_slot_and_unmaps_for_every_observer() {
    let (vm, space) = space();
    let watcher = Arc::new(Watcher::default());
    map(&space, &[range(0, MIB), range(2 * MIB, MIB)]).unwrap();
    space.add_observer(watcher.clone()).unwrap();
    assert_eq!((vm.slots().len(), watcher.mapped().len()), (2, 2));
    drop(space);
    assert_eq!((vm.slots().len(), watcher.mapped().len()), (0, 0));
}

#[test]
fn ranges_that_are_not_whole_pages_are_refused() {
    let (_, space) = space();
    for (start, size) in [(0, 0), (1, 4096), (0, 4097), (u64::MAX - 4095, 8192)] {
        let error = map(&space, &[range(start, size)]).unwrap_err();
        assert!(matches!(error, ChangeError::BadRange(_)), "{start:#x} {size:#x}: {error}");
    }
}

#[test]
fn ram_beyond_the_last_address_is_refused_with_that_address() {
    let (_, space) = space();
    let space = space.with_address_bits(32);
    let error = map(&space, &[range((1 << 32) - MIB, 2 * MIB)]).unwrap_err();
    assert!(error.to_string().contains("0xffffffff"), "{error}");
    map(&space, &[range((1 << 32) - MIB, MIB)]).unwrap();
}

#[test]
fn fault_a3_an_access_that_wraps_leaves_ram_or_meets_a_hole_is_refused_and_neighbours_are_as_one() {
    let (_, space) = space();
    map(&space, &[range(0, MIB), range(MIB, MIB), range(4 * MIB, MIB)]).unwrap();
    let table = space.memory();
    table.write_slice(&[7; 16], GuestAddress(MIB - 8)).unwrap();
    let mut bytes = [0; 16];
    table.read_slice(&mut bytes, GuestAddress(MIB - 8)).unwrap();
    assert_eq!(bytes, [7; 16]);
    for address in [2 * MIB - 8, 3 * MIB, 4 * MIB - 8, 5 * MIB - 8, u64::MAX - 7, u64::MAX] {
        let address = GuestAddress(address);
        assert!(table.read_slice(&mut bytes, address).is_err(), "{address:?}");
        assert!(table.write_slice(&bytes, address).is_err(), "{address:?}");
        assert!(table.get_slice(address, 16).is_err(), "{address:?}");
    }
}

#[test]
fn fault_c2_more_memory_than_the_host_has_addresses_is_an_error() {
    let (_, space) = space();
    let error = map(&space, &[range(0, 1 << 50)]).unwrap_err();
    assert!(matches!(error, ChangeError::Reserve { .. }), "{error}");
}

#[test]
fn slot_numbers_are_used_again_and_their_limit_is_named() {
    let vm = Arc::new(FakeVm::default());
    vm.limit_slots(3);
    let space = AddressSpace::new(vm.clone());
    map(&space, &[range(0, MIB), range(MIB, MIB), range(2 * MIB, MIB)]).unwrap();
    let error = map(&space, &[range(3 * MIB, MIB)]).unwrap_err();
    assert_eq!(error.to_string(), "KVM takes at most 3 memory slots (KVM_CAP_NR_MEMSLOTS)");
    // Full as it is, one goes and one comes in the same transaction.
    let swap = Change::Map { start: 3 * MIB, memory: memory(MIB).into(), read_only: false };
    space.apply([Change::Unmap(range(MIB, MIB)), swap]).unwrap();
    space.apply([Change::Unmap(range(0, MIB))]).unwrap();
    map(&space, &[range(5 * MIB, MIB)]).unwrap();
    let mut ids: Vec<_> = vm.slots().iter().map(|slot| slot.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn inside_a_read_section_every_transaction_is_refused() {
    let (vm, space) = space();
    map(&space, &[range(0, MIB)]).unwrap();
    let table = space.memory();
    let error = space.apply([Change::Unmap(range(0, MIB))]).unwrap_err();
    assert!(matches!(error, ChangeError::InReadSection(_)), "{error}");
    assert!(matches!(map(&space, &[range(MIB, MIB)]), Err(ChangeError::InReadSection(_))));
    drop(table);
    assert_eq!(vm.slots().len(), 1);
}

#[test]
fn what_is_replaced_keeps_its_contents_and_what_moves_its_memory() {
    let (vm, space) = space();
    map(&space, &[range(0, MIB)]).unwrap();
    write(&space, 0x5008, 42);
    let before = vm.slots()[0].host_address;
    space.apply([Change::Replace { range: range(0, MIB), memory: memory(MIB) }]).unwrap();
    let replaced = vm.slots()[0].host_address;
    assert_ne!(replaced, before);
    assert_eq!(read(&space, 0x5008), Some(42));
    space.apply([Change::Move { range: range(0, MIB), to: MIB / 2 }]).unwrap();
    assert_eq!(vm.slots()[0].host_address, replaced);
    assert_eq!((read(&space, 0x5008), read(&space, MIB / 2 + 0x5008)), (None, Some(42)));
    let error = space.apply([Change::Replace { range: range(MIB / 2, MIB), memory: memory(4096) }]);
    assert!(matches!(error, Err(ChangeError::OtherSize { size: 4096, .. })));
}

/// Counts how often the machine was brought to a standstill, and asserts that it was let go each time.
#[derive(Default)]
struct Standstills(AtomicUsize);

impl Quiesce for Standstills {
    fn quiesce(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 0);
        Ok(())
    }

    fn release(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 1);
    }
}

#[test]
fn the_machine_stands_still_for_what_a_running_guest_would_notice_and_for_nothing_else() {
    let (_, space) = space();
    let machine = Arc::new(Standstills::default());
    space.set_machine(machine.clone());
    let changes = [
        (Change::Map { start: 0, memory: memory(MIB).into(), read_only: false }, 0),
        (Change::Move { range: range(0, MIB), to: MIB }, 0),
        (Change::Protect { range: range(MIB, MIB), read_only: true }, 2),
        // As it is already.
        (Change::Protect { range: range(MIB, MIB), read_only: true }, 2),
        (Change::Replace { range: range(MIB, MIB), memory: memory(MIB) }, 4),
        (Change::Unmap(range(MIB, MIB)), 4),
    ];
    for (change, expected) in changes {
        let text = format!("{change:?}");
        space.apply([change]).unwrap();
        assert_eq!(machine.0.load(Ordering::SeqCst), expected, "{text}");
    }
}

type Meanwhile = Box<dyn Fn(&RamRegion) + Send + Sync>;

/// An observer that keeps account.
#[derive(Default)]
struct Watcher {
    mapped: Mutex<Vec<RamRange>>,
    /// Called with each region before it is mapped.
    meanwhile: Option<Meanwhile>,
    refuses: Option<RamRange>,
}

impl Watcher {
    fn mapped(&self) -> Vec<RamRange> {
        let mut mapped = self.mapped.lock().unwrap().clone();
        mapped.sort_unstable();
        mapped
    }
}

impl MemoryObserver for Watcher {
    fn name(&self) -> &str {
        "watcher"
    }

    fn map(&self, region: &RamRegion) -> Result<(), ObserverError> {
        if let Some(meanwhile) = &self.meanwhile {
            meanwhile(region);
        }
        if self.refuses == Some(region.range()) {
            return Err("no".into());
        }
        self.mapped.lock().unwrap().push(region.range());
        Ok(())
    }

    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let mut mapped = self.mapped.lock().unwrap();
        let at = mapped.iter().position(|range| *range == region.range()).expect("mapped before");
        mapped.remove(at);
        Ok(())
    }
}

#[test]
fn an_observer_maps_all_that_is_there_follows_and_unmaps_all_when_it_goes() {
    let (_, space) = space();
    map(&space, &[range(0, MIB), range(MIB, MIB)]).unwrap();
    let watcher = Arc::new(Watcher::default());
    let observer: Arc<dyn MemoryObserver> = watcher.clone();
    space.add_observer(Arc::clone(&observer)).unwrap();
    let coming = Change::Map { start: 4 * MIB, memory: memory(MIB).into(), read_only: true };
    space.apply([Change::Move { range: range(0, MIB), to: 3 * MIB }, coming]).unwrap();
    assert_eq!(watcher.mapped(), space.ranges());
    space.remove_observer(&observer).unwrap();
    assert_eq!(watcher.mapped(), []);
    map(&space, &[range(0, MIB)]).unwrap();
    assert_eq!(watcher.mapped(), []);
}

#[test]
fn an_observer_that_cannot_map_all_that_is_there_does_not_come() {
    let (_, space) = space();
    map(&space, &[range(0, MIB), range(MIB, MIB)]).unwrap();
    let watcher = Arc::new(Watcher { refuses: Some(range(MIB, MIB)), ..Watcher::default() });
    let error = space.add_observer(watcher.clone()).unwrap_err();
    assert_eq!(error.to_string(), "watcher cannot follow a change of 0x100000 bytes at 0x100000");
    assert_eq!(watcher.mapped(), []);
    space.apply([Change::Unmap(range(0, MIB))]).unwrap();
}

/// What is said of the lock order: an observer may itself change the address space, but for what is being changed.
#[test]
fn transactions_on_other_ranges_go_on_beside_each_other_and_on_the_same_range_are_refused() {
    let vm = Arc::new(FakeVm::default());
    let space = Arc::new(AddressSpace::new(vm.clone()));
    map(&space, &[range(0, MIB)]).unwrap();
    let (sender, results) = channel();
    let inner = Arc::downgrade(&space);
    let meanwhile = move |region: &RamRegion| {
        if region.range() != range(8 * MIB, MIB) {
            return;
        }
        let space = inner.upgrade().unwrap();
        let busy = [
            map(&space, &[range(8 * MIB, 4096)]),
            space.apply([Change::Unmap(range(8 * MIB, MIB))]),
            space.apply([Change::Move { range: range(0, MIB), to: 9 * MIB - 4096 }]),
            space.add_observer(Arc::new(Watcher::default())),
        ];
        let kinds = busy.map(|result| match result {
            Err(ChangeError::Busy(_)) => "busy",
            Err(ChangeError::AllBusy) => "all busy",
            other => panic!("{other:?}"),
        });
        map(&space, &[range(16 * MIB, MIB)]).unwrap();
        space.apply([Change::Unmap(range(0, MIB))]).unwrap();
        sender.send(kinds).unwrap();
    };
    space
        .add_observer(Arc::new(Watcher { meanwhile: Some(Box::new(meanwhile)), ..Watcher::default() }))
        .unwrap();
    map(&space, &[range(8 * MIB, MIB)]).unwrap();
    assert_eq!(results.recv().unwrap(), ["busy", "busy", "busy", "all busy"]);
    assert_eq!(space.ranges(), [range(8 * MIB, MIB), range(16 * MIB, MIB)]);
    assert_eq!(vm.slots().len(), 2);
}

#[test]
fn an_observer_that_panics_leaves_the_address_space_as_it_was() {
    let (vm, space) = space();
    let meanwhile = |_: &RamRegion| panic!("a fault of the observer");
    space
        .add_observer(Arc::new(Watcher { meanwhile: Some(Box::new(meanwhile)), ..Watcher::default() }))
        .unwrap();
    let panics = std::panic::AssertUnwindSafe(|| map(&space, &[range(0, MIB)]));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!((space.ranges(), vm.slots()), (vec![], vec![]));
}

fn pin(space: &AddressSpace, address: u64, holder: &Arc<PinHolder>) -> crate::RegionPin {
    space.memory().find_region(GuestAddress(address)).unwrap().pin(holder).unwrap()
}

#[test]
fn a_pinned_range_stays_and_the_error_says_whose_pins_they_are() {
    let (vm, space) = space();
    let space = space.with_pin_limit(Duration::ZERO);
    map(&space, &[range(0, MIB), range(MIB, MIB)]).unwrap();
    let (sender, cancelled) = channel();
    let sender = Mutex::new(sender);
    let disk = PinHolder::new("disk0", move |range| sender.lock().unwrap().send(range).unwrap());
    let idle = PinHolder::new("net0", |_| panic!("it has no pin there"));
    let (pins, other) = ([pin(&space, 0x1000, &disk), pin(&space, 0, &disk)], pin(&space, MIB, &idle));
    drop(pin(&space, 0, &idle));
    let error = space.apply([Change::Unmap(range(0, MIB))]).unwrap_err();
    assert_eq!(error.to_string(), "0x100000 bytes at 0x0 is still in use by disk0 after 0ns");
    assert_eq!(cancelled.try_iter().collect::<Vec<_>>(), [range(0, MIB)]);
    assert_eq!((read(&space, 0), vm.slots().len(), pins[0].is_leaving()), (Some(0), 2, false));
    // It can be pinned again, and moved as it is.
    drop(pin(&space, 0, &disk));
    space.apply([Change::Move { range: range(0, MIB), to: 4 * MIB }]).unwrap();
    pins[0].write_obj(9u64, vm_memory::MemoryRegionAddress(8)).unwrap();
    assert_eq!(read(&space, 4 * MIB + 8), Some(9));
    drop(pins);
    space.apply([Change::Unmap(range(4 * MIB, MIB))]).unwrap();
    drop(other);
}

#[test]
fn unmapping_waits_for_requests_that_end_when_they_are_cancelled() {
    let (_, space) = space();
    map(&space, &[range(0, MIB)]).unwrap();
    let (sender, cancelled) = channel();
    let sender = Mutex::new(sender);
    let disk = PinHolder::new("disk0", move |_| sender.lock().unwrap().send(()).unwrap());
    let request = pin(&space, 0, &disk);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            cancelled.recv().unwrap();
            assert!(request.is_leaving());
            assert!(request.pin(&PinHolder::new("late", |_| ())).is_err());
            request.write_obj(1u64, vm_memory::MemoryRegionAddress(0)).unwrap();
        });
        space.apply([Change::Unmap(range(0, MIB))]).unwrap();
    });
    assert_eq!(space.ranges(), []);
}

/// A device that keeps the table of a batch at hand, and one that pins a region of a table that is gone.
#[test]
fn whoever_keeps_an_old_table_reads_memory_that_is_mapped_and_cannot_pin_it() {
    let (_, space) = space();
    map(&space, &[range(0, MIB)]).unwrap();
    write(&space, 8, 5);
    let kept = GuestMemory::clone(&space.memory());
    space.apply([Change::Unmap(range(0, MIB))]).unwrap();
    assert_eq!(read(&space, 8), None);
    assert_eq!(kept.read_obj::<u64>(GuestAddress(8)).unwrap(), 5);
    let region = kept.find_region(GuestAddress(8)).unwrap();
    assert!(region.pin(&PinHolder::new("late", |_| ())).is_err());
}

#[test]
fn what_is_shared_says_its_file_and_several_ranges_are_in_it_one_after_the_other() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(3 * MIB).unwrap();
    let kind = BackingKind::File { file: Arc::new(file), shared: true, offset: MIB };
    let (_, space) = space();
    space.map(&[range(0, MIB), range(1 << 32, MIB)], &Backing::new(kind.clone())).unwrap();
    let offsets: Vec<_> = space.memory().iter().map(|region| region.file_offset().unwrap().start()).collect();
    assert_eq!(offsets, [MIB, 2 * MIB]);
    let more = [range(2 << 32, 2 * MIB), range(3 << 32, MIB)];
    let error = space.map(&more, &Backing::new(kind)).unwrap_err();
    assert!(matches!(error, ChangeError::Reserve { range, .. } if range == more[1]), "{error}");
    assert_eq!(space.ranges().len(), 2);
}

/// Each backing in the place of each other.
#[test]
fn contents_go_from_every_backing_to_every_other() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let file = Arc::new(file);
    let file = |shared| BackingKind::File { file: Arc::clone(&file), shared, offset: 0 };
    let kinds = || [BackingKind::Anonymous, BackingKind::Memfd, file(true), file(false)];
    let (_, space) = space();
    map(&space, &[range(0, MIB)]).unwrap();
    for (number, (from, to)) in
        kinds().into_iter().flat_map(|from| kinds().map(|to| (from.clone(), to))).enumerate()
    {
        for (kind, value) in [(from, number as u64 + 1), (to, 0)] {
            let before = read(&space, 0x3000);
            let memory = HostMemory::reserve(&Backing::new(kind), MIB).unwrap();
            space.apply([Change::Replace { range: range(0, MIB), memory }]).unwrap();
            assert_eq!(read(&space, 0x3000), before);
            write(&space, 0x3000, value);
        }
    }
}
