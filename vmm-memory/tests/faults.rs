//! Fault injection: each step of each kind of transaction fails once, and everything is as it was before.
//!
//! One test, since it looks at the mappings of the whole process.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_core::fake::FakeVm;
use vmm_core::seam::MemorySlot;
use vmm_memory::{
    AddressSpace, Backing, Change, ChangeError, HostMemory, MemoryObserver, ObserverError, PinHolder,
    Quiesce, RamRange, RamRegion,
};

/// Large, so that a mapping too much or too few shows in the size of the process.
const SIZE: u64 = 32 << 20;

const fn place(number: u64) -> RamRange {
    RamRange { start: number * SIZE, size: SIZE }
}

fn memory() -> HostMemory {
    HostMemory::anonymous(SIZE).unwrap()
}

fn map(number: u64) -> Change {
    Change::Map { start: place(number).start, memory: memory().into(), read_only: false }
}

/// Makes a transaction.
type Changes = fn() -> Vec<Change>;

/// The kinds of transactions, on an address space with RAM at the places 0 to 3.
fn kinds() -> Vec<(&'static str, Changes)> {
    vec![
        ("map", || vec![map(4)]),
        ("map two", || vec![map(4), map(6)]),
        ("unmap", || vec![Change::Unmap(place(1))]),
        ("unmap two", || vec![Change::Unmap(place(2)), Change::Unmap(place(0))]),
        ("replace", || vec![Change::Replace { range: place(1), memory: memory() }]),
        ("protect", || vec![Change::Protect { range: place(1), read_only: true }]),
        ("move", || vec![Change::Move { range: place(1), to: place(5).start }]),
        ("move over itself", || vec![Change::Move { range: place(3), to: place(3).start + SIZE / 2 }]),
        ("one for another", || vec![Change::Unmap(place(1)), map(1)]),
        ("exchange", || {
            let go = |from, to| Change::Move { range: place(from), to: place(to).start };
            vec![go(0, 7), go(1, 0), go(7, 1)]
        }),
        ("all", || {
            vec![
                Change::Unmap(place(0)),
                Change::Move { range: place(1), to: place(0).start },
                Change::Replace { range: place(2), memory: memory() },
                Change::Protect { range: place(3), read_only: true },
                map(1),
            ]
        }),
    ]
}

/// An observer that keeps account, and fails the calls that a test names.
struct Watcher {
    vm: Arc<FakeVm>,
    mapped: Mutex<Vec<(RamRange, u64)>>,
    calls: AtomicUsize,
    failing: Mutex<HashSet<usize>>,
}

impl Watcher {
    fn new(vm: &Arc<FakeVm>) -> Arc<Self> {
        Arc::new(Self {
            vm: Arc::clone(vm),
            mapped: Mutex::default(),
            calls: AtomicUsize::new(0),
            failing: Mutex::default(),
        })
    }

    fn mapped(&self) -> Vec<(RamRange, u64)> {
        let mut mapped = self.mapped.lock().unwrap().clone();
        mapped.sort_unstable();
        mapped
    }

    /// Fails the `later`th call from now on, and `more` after it.
    fn fail(&self, later: usize, more: usize) {
        let first = self.calls.load(Ordering::Relaxed) + later;
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = (first..=first + more).collect();
    }

    /// Counts a call, made while the guest must not see the region.
    fn call(&self, region: &RamRegion) -> Result<(RamRange, u64), ObserverError> {
        let host = region.host_address() as u64;
        let shown =
            |slot: &MemorySlot| slot.guest_address == region.range().start && slot.host_address == host;
        assert!(!self.vm.slots().iter().any(shown), "the guest sees {}", region.range());
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.failing.lock().unwrap().contains(&call) {
            true => Err("refused".into()),
            false => Ok((region.range(), host)),
        }
    }
}

impl MemoryObserver for Watcher {
    fn name(&self) -> &str {
        "watcher"
    }

    fn map(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let entry = self.call(region)?;
        let mut mapped = self.mapped.lock().unwrap();
        assert!(
            mapped
                .iter()
                .all(|(other, _)| other.start >= entry.0.end().unwrap()
                    || entry.0.start >= other.end().unwrap()),
            "an address twice"
        );
        mapped.push(entry);
        Ok(())
    }

    fn unmap(&self, region: &RamRegion) -> Result<(), ObserverError> {
        let entry = self.call(region)?;
        let mut mapped = self.mapped.lock().unwrap();
        let at = mapped.iter().position(|other| *other == entry).expect("mapped before");
        mapped.remove(at);
        Ok(())
    }
}

/// A machine that does not always come to a standstill.
#[derive(Default)]
struct Machine {
    standing: AtomicUsize,
    refuses: AtomicUsize,
}

impl Quiesce for Machine {
    fn quiesce(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.refuses.load(Ordering::Relaxed) != 0 {
            return Err("vCPU 3 has not answered".into());
        }
        assert_eq!(self.standing.fetch_add(1, Ordering::Relaxed), 0);
        Ok(())
    }

    fn release(&self) {
        assert_eq!(self.standing.fetch_sub(1, Ordering::Relaxed), 1);
    }
}

struct World {
    vm: Arc<FakeVm>,
    space: AddressSpace,
    watchers: [Arc<Watcher>; 2],
    machine: Arc<Machine>,
    mapped_before: u64,
}

/// What can be seen of an address space from outside.
#[derive(Debug, PartialEq)]
struct State {
    table: Vec<(RamRange, u64, bool)>,
    slots: Vec<MemorySlot>,
    observed: Vec<Vec<(RamRange, u64)>>,
    /// Mappings of guest RAM that this process has.
    mappings: u64,
    contents: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let mapped_before = mapped_bytes();
        let vm = Arc::new(FakeVm::default());
        let watchers = [Watcher::new(&vm), Watcher::new(&vm)];
        let space = AddressSpace::new(vm.clone()).with_pin_limit(Duration::ZERO);
        for watcher in &watchers {
            space.add_observer(watcher.clone()).unwrap();
        }
        space.map(&[place(0), place(1), place(2), place(3)], &Backing::default()).unwrap();
        for number in 0..4 {
            space.memory().write_obj(number + 100, GuestAddress(place(number).start)).unwrap();
        }
        let machine = Arc::new(Machine::default());
        space.set_machine(machine.clone());
        Self { vm, space, watchers, machine, mapped_before }
    }

    fn state(&self) -> State {
        let table = self.space.memory();
        let row = |region: &RamRegion| (region.range(), region.host_address() as u64, region.is_read_only());
        State {
            table: table.iter().map(row).collect(),
            slots: self.vm.slots(),
            observed: self.watchers.iter().map(|watcher| watcher.mapped()).collect(),
            mappings: mappings_since(self.mapped_before),
            contents: table
                .iter()
                .map(|region| table.read_obj(GuestAddress(region.range().start)).unwrap())
                .collect(),
        }
    }

    /// Whatever the guest, a device or an observer can reach is there, and whatever is in the table can be reached by all.
    fn ensure_consistent(&self, what: &str) {
        let state = self.state();
        assert_eq!(self.machine.standing.load(Ordering::Relaxed), 0, "{what}: the machine stands still");
        for (range, host, read_only) in &state.table {
            let slot = state.slots.iter().find(|slot| slot.guest_address == range.start);
            let expected = Some((range.size, *host, *read_only));
            assert_eq!(slot.map(|slot| (slot.size, slot.host_address, slot.read_only)), expected, "{what}");
            assert!(state.observed.iter().all(|mapped| mapped.contains(&(*range, *host))), "{what}: {range}");
        }
        let slots = state.slots.iter().map(|slot| slot.host_address);
        let mappings = mappings();
        for host in slots.chain(state.observed.iter().flatten().map(|(_, host)| *host)) {
            let is_mapped = mappings.iter().any(|mapping| mapping.contains(&host));
            assert!(is_mapped, "{what}: {host:#x} is not mapped");
        }
    }

    /// How many calls `changes` make of KVM and of each observer.
    fn calls_of(changes: Vec<Change>) -> (usize, usize) {
        let world = Self::new();
        let before = world.calls();
        world.space.apply(changes).unwrap();
        let after = world.calls();
        (after.0 - before.0, after.1 - before.1)
    }

    fn calls(&self) -> (usize, usize) {
        (self.vm.calls().len(), self.watchers[0].calls.load(Ordering::Relaxed))
    }
}

/// Bytes of address space that this process has.
fn mapped_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

fn mappings_since(before: u64) -> u64 {
    (mapped_bytes().saturating_sub(before) + SIZE / 2) / SIZE
}

/// The addresses of this process at which it can write.
fn mappings() -> Vec<std::ops::Range<u64>> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let writable = maps.lines().filter(|line| line.contains(" rw-p "));
    let range = |line: &str| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        number(start)..number(end)
    };
    writable.map(range).collect()
}

/// Makes one step fail, and the whole transaction again when that is over.
fn fails_once(kind: &str, changes: Changes, what: &str, inject: impl Fn(&World)) -> ChangeError {
    let world = World::new();
    let before = world.state();
    inject(&world);
    let what = format!("{kind}: {what}");
    let error = world.space.apply(changes()).expect_err(&what);
    assert_eq!(world.state(), before, "{what}");
    world.ensure_consistent(&what);
    world.machine.refuses.store(0, Ordering::Relaxed);
    world.watchers.iter().for_each(|watcher| watcher.failing.lock().unwrap().clear());
    world.space.apply(changes()).expect(&what);
    assert_ne!(world.state(), before, "{what}");
    world.ensure_consistent(&what);
    let mapped_before = world.mapped_before;
    drop(world);
    assert_eq!(mappings_since(mapped_before), 0, "{what}: a mapping is left");
    error
}

/// Makes a step fail, and `more` that follow it, those that would undo it among them.
fn fails_again(kind: &str, changes: Changes, what: &str, inject: impl Fn(&World)) {
    let world = World::new();
    inject(&world);
    let what = format!("{kind}: {what} and what undoes it");
    world.space.apply(changes()).expect_err(&what);
    world.ensure_consistent(&what);
}

#[test]
fn whatever_fails_everything_is_as_before_and_what_cannot_be_undone_is_out_of_the_table() {
    const ONE_AND_ALL: [usize; 2] = [1, 1000];
    for (kind, changes) in kinds() {
        let (ioctls, callbacks) = World::calls_of(changes());
        for nth in 0..ioctls {
            let what = format!("ioctl {nth}");
            let fail = |world: &World| world.vm.fail_call(world.calls().0 + nth, libc::ENOMEM);
            let error = fails_once(kind, changes, &what, fail);
            assert!(matches!(error, ChangeError::Slot { .. }), "{what}: {error}");
            for more in ONE_AND_ALL {
                fails_again(kind, changes, &what, |world| {
                    let first = world.calls().0 + nth;
                    (first..=first + more).for_each(|call| world.vm.fail_call(call, libc::ENOMEM));
                });
            }
        }
        for (watcher, nth) in (0..2).flat_map(|watcher| (0..callbacks).map(move |nth| (watcher, nth))) {
            let what = format!("callback {nth} of observer {watcher}");
            let error = fails_once(kind, changes, &what, |world| world.watchers[watcher].fail(nth, 0));
            assert!(matches!(error, ChangeError::Observer { .. }), "{what}: {error}");
            for more in ONE_AND_ALL {
                fails_again(kind, changes, &what, |world| world.watchers[watcher].fail(nth, more));
            }
        }
        let stands_still = ["replace", "protect", "all"].contains(&kind);
        if stands_still {
            let refuse = |world: &World| world.machine.refuses.store(1, Ordering::Relaxed);
            let error = fails_once(kind, changes, "standstill", refuse);
            assert!(matches!(error, ChangeError::Quiesce { .. }), "{error}");
        }
    }
    pins_fail_what_takes_memory_away();
    faults_of_all_kinds_together_leave_something_consistent();
}

/// Every fourth call fails, in an order that each round has for itself.
fn faults_of_all_kinds_together_leave_something_consistent() {
    let mut random = 1u64;
    let mut fails = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 62 == 0
    };
    for round in 0..30 {
        for (kind, changes) in kinds() {
            let world = World::new();
            let (ioctls, callbacks) = world.calls();
            (ioctls..ioctls + 50).filter(|_| fails()).for_each(|call| world.vm.fail_call(call, libc::ENOMEM));
            for watcher in &world.watchers {
                *watcher.failing.lock().unwrap() = (callbacks..callbacks + 50).filter(|_| fails()).collect();
            }
            let _ = world.space.apply(changes());
            world.ensure_consistent(&format!("{kind}, round {round}"));
        }
    }
}

fn pins_fail_what_takes_memory_away() {
    for (kind, changes) in kinds() {
        let takes_away =
            changes().iter().any(|change| matches!(change, Change::Unmap(_) | Change::Replace { .. }));
        let world = World::new();
        let holder = PinHolder::new("disk0", |_| ());
        let table = world.space.memory();
        let pins: Vec<_> = table.iter().map(|region| region.pin(&holder).unwrap()).collect();
        drop(table);
        let before = world.state();
        let result = world.space.apply(changes());
        if takes_away {
            assert!(
                matches!(&result, Err(ChangeError::Pinned { holders, .. }) if *holders == ["disk0"]),
                "{kind}"
            );
            assert_eq!(world.state(), before, "{kind}");
            drop(pins);
            world.space.apply(changes()).unwrap();
        } else {
            result.unwrap();
        }
        world.ensure_consistent(kind);
    }
}
