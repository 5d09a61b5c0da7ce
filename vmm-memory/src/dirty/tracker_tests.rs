//! Tests of dirty tracking over a VM without KVM: each mechanism, devices, and slots that come and go meanwhile.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_core::DirtyMechanism;
use vmm_core::fake::{FakeCall, FakeVm};

use super::*;
use crate::{AddressSpace, Backing, Change, HostMemory, PAGE, PinHolder, RamRange};

const NOTHING: [u64; 0] = [];
const LOW: RamRange = RamRange { start: 0, size: 70 * PAGE };
const HIGH: RamRange = RamRange { start: 1 << 32, size: 3 * PAGE };

const BITMAP: DirtyMechanism = DirtyMechanism::Bitmap;
const MANUAL: DirtyMechanism = DirtyMechanism::ManualProtect { initially_set: false };
const ALL_SET: DirtyMechanism = DirtyMechanism::ManualProtect { initially_set: true };
const RING: DirtyMechanism = DirtyMechanism::Ring { bytes: 4096 };

/// Two ranges that nobody tracks yet.
fn tracked(mechanism: DirtyMechanism) -> (Arc<FakeVm>, AddressSpace, Arc<DirtyTracker>) {
    let vm = Arc::new(FakeVm::default());
    vm.set_dirty_mechanism(mechanism);
    let (space, tracker) = DirtyTracker::track(vm.clone()).unwrap();
    space.map(&[LOW, HIGH], &Backing::default()).unwrap();
    (vm, space, tracker)
}

/// Tracked, and with nothing to harvest.
fn clean(mechanism: DirtyMechanism) -> (Arc<FakeVm>, AddressSpace, Arc<DirtyTracker>) {
    let (vm, space, tracker) = tracked(mechanism);
    tracker.start().unwrap();
    let first = harvested(&tracker);
    assert_eq!(first.len(), if mechanism == ALL_SET { 73 } else { 0 });
    (vm, space, tracker)
}

/// The addresses of all dirty pages.
fn harvested(tracker: &DirtyTracker) -> Vec<u64> {
    let harvest = tracker.harvest().unwrap();
    harvest.iter().flat_map(|pages| pages.addresses().collect::<Vec<_>>()).collect()
}

fn every(range: RamRange) -> Vec<u64> {
    (range.start..range.start + range.size).step_by(PAGE as usize).collect()
}

fn memory(range: RamRange) -> HostMemory {
    HostMemory::anonymous(range.size).unwrap()
}

#[test]
fn each_mechanism_tells_what_the_guest_and_devices_have_written_once() {
    for mechanism in [BITMAP, MANUAL, ALL_SET, RING] {
        let (vm, space, tracker) = clean(mechanism);
        vm.guest_writes(65 * PAGE);
        vm.guest_writes(HIGH.start + 8);
        space.memory().write_slice(&[1; 2], GuestAddress(3 * PAGE - 1)).unwrap();
        vm.guest_writes(3 * PAGE);
        let expected = [2 * PAGE, 3 * PAGE, 65 * PAGE, HIGH.start];
        assert_eq!(harvested(&tracker), expected, "{mechanism:?}");
        assert_eq!(harvested(&tracker), NOTHING, "{mechanism:?}");
        vm.guest_writes(65 * PAGE);
        assert_eq!(harvested(&tracker), [65 * PAGE], "{mechanism:?}");
    }
}

#[test]
fn nothing_is_told_before_tracking_starts_or_after_it_has_ended() {
    for mechanism in [BITMAP, MANUAL, RING] {
        let (vm, space, tracker) = tracked(mechanism);
        let write = || {
            vm.guest_writes(PAGE);
            space.memory().write_obj(1_u8, GuestAddress(2 * PAGE)).unwrap();
        };
        assert!(matches!(tracker.harvest(), Err(DirtyError::NotTracking)));
        for _ in 0..2 {
            write();
            tracker.start().unwrap();
            assert_eq!(harvested(&tracker), NOTHING, "{mechanism:?}");
            write();
            tracker.stop().unwrap();
            assert!(vm.slots().iter().all(|slot| !slot.log_dirty));
        }
    }
}

#[test]
fn a_write_through_a_pin_or_a_slice_is_told() {
    let (_vm, space, tracker) = clean(BITMAP);
    let holder = PinHolder::new("device", |_| ());
    let pin = space.memory().find_region(GuestAddress(HIGH.start)).unwrap().pin(&holder).unwrap();
    pin.write_obj(1_u64, MemoryRegionAddress(PAGE)).unwrap();
    let slice = pin.get_slice(MemoryRegionAddress(2 * PAGE), 8).unwrap();
    slice.copy_from(&[1_u8; 8]);
    assert_eq!(harvested(&tracker), [HIGH.start + PAGE, HIGH.start + 2 * PAGE]);
    // The kernel has written for a device.
    vm_memory::bitmap::Bitmap::mark_dirty(slice.bitmap(), 0, 8);
    assert_eq!(harvested(&tracker), [HIGH.start + 2 * PAGE]);
}

#[test]
fn ram_that_comes_moves_or_is_replaced_is_dirty_as_a_whole_and_what_goes_is_not_told() {
    for mechanism in [BITMAP, MANUAL, ALL_SET, RING] {
        let (vm, space, tracker) = clean(mechanism);
        let new = RamRange { start: 1 << 33, size: 2 * PAGE };
        vm.guest_writes(HIGH.start);
        space.apply([Change::Unmap(HIGH)]).unwrap();
        assert_eq!(harvested(&tracker), NOTHING, "{mechanism:?}");
        space.map(&[new], &Backing::default()).unwrap();
        assert_eq!(harvested(&tracker), every(new), "{mechanism:?}");
        let moved = RamRange { start: 1 << 34, ..new };
        space.apply([Change::Move { range: new, to: moved.start }]).unwrap();
        assert_eq!(harvested(&tracker), every(moved), "{mechanism:?}");
        space.apply([Change::Replace { range: moved, memory: memory(moved) }]).unwrap();
        assert_eq!(harvested(&tracker), every(moved), "{mechanism:?}");
        space.apply([Change::Protect { range: LOW, read_only: true }]).unwrap();
        assert_eq!(harvested(&tracker), every(LOW), "{mechanism:?}");
        vm.guest_writes(moved.start + PAGE);
        space.memory().write_obj(1_u8, GuestAddress(moved.start)).unwrap();
        assert_eq!(harvested(&tracker), every(moved), "{mechanism:?}");
    }
}

#[test]
fn ram_that_comes_back_since_a_change_failed_is_dirty_as_a_whole() {
    let (vm, space, tracker) = clean(BITMAP);
    let new = RamRange { start: 1 << 33, size: PAGE };
    // The first slot is deleted, and the new one refused.
    vm.fail_call(vm.calls().len() + 1, libc::ENOMEM);
    let changes =
        [Change::Unmap(LOW), Change::Map { start: new.start, memory: memory(new).into(), read_only: false }];
    space.apply(changes).unwrap_err();
    assert_eq!(harvested(&tracker), every(LOW));
    space.memory().write_obj(1_u8, GuestAddress(PAGE)).unwrap();
    vm.guest_writes(0);
    assert_eq!(harvested(&tracker), [0, PAGE]);
}

#[test]
fn what_a_full_ring_had_is_in_the_next_harvest() {
    let (vm, _space, tracker) = clean(RING);
    vm.guest_writes(PAGE);
    vm.ring_full().unwrap();
    vm.guest_writes(0);
    vm.ring_full().unwrap();
    vm.guest_writes(PAGE);
    assert_eq!(harvested(&tracker), [0, PAGE]);
    assert_eq!(harvested(&tracker), NOTHING);
}

#[test]
fn after_an_overrun_everything_is_dirty_once() {
    let (vm, _space, tracker) = clean(RING);
    vm.guest_writes(PAGE);
    vm.overrun_ring();
    assert_eq!(harvested(&tracker), [every(LOW), every(HIGH)].concat());
    vm.guest_writes(PAGE);
    assert_eq!(harvested(&tracker), [PAGE]);
}

#[test]
fn a_full_ring_is_emptied_when_nothing_is_tracked_any_more() {
    let (vm, _space, tracker) = clean(RING);
    vm.guest_writes(PAGE);
    tracker.stop().unwrap();
    vm.ring_full().unwrap();
    tracker.start().unwrap();
    assert_eq!(harvested(&tracker), NOTHING);
}

#[test]
fn a_harvest_that_fails_loses_nothing() {
    for (mechanism, calls) in [(BITMAP, 2), (MANUAL, 4), (RING, 1)] {
        let (vm, space, tracker) = clean(mechanism);
        for failing in 0..calls {
            vm.guest_writes(PAGE);
            vm.guest_writes(HIGH.start);
            space.memory().write_obj(1_u8, GuestAddress(0)).unwrap();
            vm.fail_call(vm.calls().len() + failing, libc::ENOMEM);
            tracker.harvest().unwrap_err();
            assert_eq!(harvested(&tracker), [0, PAGE, HIGH.start], "{mechanism:?}, call {failing}");
            assert_eq!(harvested(&tracker), NOTHING, "{mechanism:?}, call {failing}");
        }
    }
}

#[test]
fn a_start_that_fails_leaves_nothing_tracked() {
    let (vm, _space, tracker) = tracked(BITMAP);
    vm.fail_call(vm.calls().len() + 1, libc::ENOMEM);
    assert!(matches!(tracker.start(), Err(DirtyError::Slot { .. })));
    assert!(vm.slots().iter().all(|slot| !slot.log_dirty));
    assert!(matches!(tracker.harvest(), Err(DirtyError::NotTracking)));
    tracker.start().unwrap();
    vm.guest_writes(0);
    assert_eq!(harvested(&tracker), [0]);
}

#[test]
fn only_parts_with_dirty_pages_are_cleared() {
    let (vm, space, tracker) = tracked(MANUAL);
    let large = RamRange { start: 1 << 40, size: 3 << 30 };
    space.map(&[large], &Backing::default()).unwrap();
    tracker.start().unwrap();
    vm.guest_writes(large.start + (2 << 30));
    assert_eq!(harvested(&tracker), [large.start + (2 << 30)]);
    let is_clear = |call: &FakeCall| matches!(call, FakeCall::ClearDirtyLog(..));
    let clears: Vec<_> = vm.calls().into_iter().filter(is_clear).collect();
    assert_eq!(clears, [FakeCall::ClearDirtyLog(2, 2 << 18)]);
}
