//! Loom models of guest RAM that goes and comes: the real order of the steps, the real pins and the real grace protocol, with
//! memory that must not be accessed when it is not there.
//!
//! Three others are at work meanwhile: a vCPU that stores to the range, which the kernel lets through while there is a slot;
//! a device that reads the table, stores, and leaves a request in flight under a pin; and an observer's device, which
//! stores when somebody who sees the range asks it to. KVM and the kernel's side of an observer are modelled by mutexes: a
//! slot is deleted, a mapping undone, when nobody is in it any more.
//!
//! Beside the models that must pass stand those that must fail: each leaves one step out or takes two in the wrong order, and
//! the checker finds the access to memory that is gone, or not there yet.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use loom::cell::UnsafeCell;
use loom::thread;
use vmm_core::model::{ModelCell, ModelReader, Replaced};

use crate::address_space::sequence::{Insertion, Removal, insert, remove};
use crate::pin::{PinHolder, Pins};
use crate::range::RamRange;
use crate::sync::{Mutex, lock};

/// The guest's RAM: one region.
struct World {
    /// loom reports an access at the same time as the end.
    memory: UnsafeCell<()>,
    /// Reports an access after it.
    is_mapped: AtomicBool,
    /// Whether the region is in the table.
    table: ModelCell<bool>,
    /// Whether the guest sees it. Held while a vCPU is in it.
    slot: Mutex<bool>,
    /// Whether the observer maps it. Held while its device accesses it.
    observed: Mutex<bool>,
    pins: Arc<Pins>,
    holder: Arc<PinHolder>,
}

const RANGE: RamRange = RamRange { start: 0, size: 4096 };
/// Values of the table.
const WITHOUT: usize = 0;
const WITH: usize = 1;

impl World {
    fn new(mapped: bool) -> Arc<Self> {
        let table = ModelCell::new([false, true]);
        if mapped {
            let _ = table.publish(WITH);
        }
        Arc::new(Self {
            memory: UnsafeCell::new(()),
            is_mapped: AtomicBool::new(mapped),
            table,
            slot: Mutex::new(mapped),
            observed: Mutex::new(mapped),
            pins: Arc::default(),
            holder: PinHolder::new("device", |_| ()),
        })
    }

    fn store(&self) {
        assert!(self.is_mapped.load(Ordering::Relaxed), "memory that is not there is accessed");
        self.memory.with(|_| ());
    }

    /// The memory comes from the host.
    fn reserve(&self) {
        self.memory.with_mut(|_| ());
        self.is_mapped.store(true, Ordering::Relaxed);
    }

    /// The memory goes back to the host.
    fn release(&self) {
        self.is_mapped.store(false, Ordering::Relaxed);
        self.memory.with_mut(|_| ());
    }

    /// A store of the guest. It goes to the memory or becomes an exit.
    fn vcpu(&self) -> bool {
        let slot = lock(&self.slot);
        if *slot {
            self.store();
        }
        *slot
    }

    /// A batch of the device, and the request that it leaves.
    fn device(&self, reader: ModelReader) {
        let pinned = self.table.read(reader, |with| {
            if !with {
                return false;
            }
            self.store();
            self.holder.acquire(&self.pins).expect("nothing leaves while its readers are waited for");
            true
        });
        if pinned {
            self.store();
            self.holder.release(&self.pins);
        }
    }

    /// What whoever sees the region can have the observer's device do.
    fn ask_observer(&self) {
        let observed = lock(&self.observed);
        assert!(*observed, "an observer has yet to map what is seen already");
        self.store();
    }

    /// It was asked to store, at some time, and has a mapping of its own or none.
    fn observers_device(&self) {
        let observed = lock(&self.observed);
        if *observed {
            self.store();
        }
    }

    fn delete_slot(&self) {
        *lock(&self.slot) = false;
    }

    fn wait_for_pins(&self) {
        self.pins.close(RANGE);
        self.wait_for_closed_pins();
    }

    fn wait_for_closed_pins(&self) {
        let late = self.pins.wait_released(Instant::now() + Duration::from_secs(1 << 30));
        assert!(late.is_empty());
    }

    fn unmap_observer(&self) {
        *lock(&self.observed) = false;
    }
}

impl Removal for &World {
    type Error = Infallible;
    type Replaced = Replaced;

    fn unpublish(&mut self) -> Replaced {
        self.table.publish(WITHOUT)
    }

    fn delete_slots(&mut self) -> Result<(), Infallible> {
        self.delete_slot();
        Ok(())
    }

    fn wait_for_readers(&mut self, replaced: Replaced) -> Result<(), Infallible> {
        self.table.wait(&replaced);
        Ok(())
    }

    fn wait_for_pins(&mut self) -> Result<(), Infallible> {
        World::wait_for_pins(self);
        Ok(())
    }

    fn unmap(&mut self) -> Result<(), Infallible> {
        self.unmap_observer();
        Ok(())
    }
}

impl Insertion for &World {
    type Error = Infallible;

    fn map(&mut self) -> Result<(), Infallible> {
        *lock(&self.observed) = true;
        Ok(())
    }

    fn create_slots(&mut self) -> Result<(), Infallible> {
        *lock(&self.slot) = true;
        Ok(())
    }

    fn publish(&mut self) {
        let _ = self.table.publish(WITH);
    }
}

/// Who is at work while the region goes.
#[derive(Clone, Copy)]
enum Other {
    Device,
    Vcpu,
    ObserversDevice,
}

use Other::{Device, ObserversDevice, Vcpu};

/// The region goes as `write` has it go, while the others use it.
fn removal(others: &'static [Other], write: impl Fn(&World) + Send + Sync + 'static) {
    loom::model(move || {
        let world = World::new(true);
        let reader = world.table.join();
        let threads = others.iter().map(|other| {
            let world = Arc::clone(&world);
            thread::spawn(move || match other {
                Device => world.device(reader),
                Vcpu => {
                    world.vcpu();
                }
                ObserversDevice => world.observers_device(),
            })
        });
        let threads: Vec<_> = threads.collect();
        write(&world);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The region comes as `write` has it come, while others look for it.
fn insertion(write: impl Fn(&World) + Send + Sync + 'static) {
    loom::model(move || {
        let world = World::new(false);
        let reader = world.table.join();
        let device = Arc::clone(&world);
        let device = thread::spawn(move || {
            let seen = device.table.read(reader, |with| {
                if *with {
                    device.store();
                }
                *with
            });
            // It tells the guest.
            if seen {
                assert!(device.vcpu(), "the guest has yet to see what a device sees");
            }
        });
        let vcpu = Arc::clone(&world);
        let vcpu = thread::spawn(move || {
            // It tells the observer's device.
            if vcpu.vcpu() {
                vcpu.ask_observer();
            }
        });
        write(&world);
        device.join().unwrap();
        vcpu.join().unwrap();
    });
}

fn remove_and_release(mut world: &World) {
    let Ok(()) = remove(&mut world);
    world.release();
}

#[test]
fn loom_memory_goes_when_no_vcpu_no_reader_and_no_request_is_in_it() {
    removal(&[Device, Vcpu], remove_and_release);
    removal(&[Device, ObserversDevice], remove_and_release);
    removal(&[Vcpu, ObserversDevice], remove_and_release);
}

/// The writer kicks: a vCPU that is in the guest while its slot is deleted leaves it, and comes again.
#[test]
fn loom_a_vcpu_that_comes_again_finds_no_slot() {
    loom::model(|| {
        let world = World::new(true);
        let vcpu = Arc::clone(&world);
        let vcpu = thread::spawn(move || {
            while vcpu.vcpu() {
                thread::yield_now();
            }
        });
        remove_and_release(&world);
        vcpu.join().unwrap();
    });
}

/// A holder that has pinned the region before is known to it; one that has not registers while the region goes.
#[test]
fn loom_a_holder_that_has_had_a_pin_before_is_waited_for_too() {
    loom::model(|| {
        let world = World::new(true);
        world.holder.acquire(&world.pins).unwrap();
        world.holder.release(&world.pins);
        let reader = world.table.join();
        let device = Arc::clone(&world);
        let device = thread::spawn(move || device.device(reader));
        remove_and_release(&world);
        device.join().unwrap();
    });
}

/// Whoever keeps a table beyond its read section, against the rules, gets no pin or is waited for.
#[test]
fn loom_a_pin_taken_at_any_time_is_refused_or_waited_for() {
    for known in [false, true] {
        loom::model(move || {
            let world = World::new(true);
            if known {
                world.holder.acquire(&world.pins).unwrap();
                world.holder.release(&world.pins);
            }
            let late = Arc::clone(&world);
            let late = thread::spawn(move || {
                if late.holder.acquire(&late.pins).is_ok() {
                    late.store();
                    late.holder.release(&late.pins);
                }
            });
            world.wait_for_pins();
            world.release();
            late.join().unwrap();
        });
    }
}

#[test]
fn loom_what_is_seen_is_in_place() {
    insertion(|mut world| {
        world.reserve();
        let Ok(()) = insert(&mut world);
    });
}

#[test]
#[should_panic(expected = "not there")]
fn loom_must_fail_nobody_waits_for_readers() {
    removal(&[Device], |mut world| {
        let _ = world.unpublish();
        world.delete_slot();
        World::wait_for_pins(world);
        world.unmap_observer();
        world.release();
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_must_fail_nobody_waits_for_pins() {
    removal(&[Device], |mut world| {
        let replaced = world.unpublish();
        world.delete_slot();
        let Ok(()) = world.wait_for_readers(replaced);
        world.unmap_observer();
        world.release();
    });
}

/// A reader of the old table pins after the pins have been waited for.
#[test]
#[should_panic(expected = "leaves while its readers")]
fn loom_must_fail_pins_are_waited_for_before_readers() {
    removal(&[Device], |mut world| {
        let replaced = world.unpublish();
        world.delete_slot();
        World::wait_for_pins(world);
        let Ok(()) = world.wait_for_readers(replaced);
        world.unmap_observer();
        world.release();
    });
}

/// The last pin goes and wakes nobody, as nobody has said that he waits.
#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_pins_are_waited_for_that_were_not_closed() {
    removal(&[Device], |mut world| {
        let replaced = world.unpublish();
        world.delete_slot();
        let Ok(()) = world.wait_for_readers(replaced);
        world.wait_for_closed_pins();
        world.release();
    });
}

#[test]
#[should_panic(expected = "not there")]
fn loom_must_fail_the_table_is_replaced_last() {
    removal(&[Device], |mut world| {
        world.delete_slot();
        World::wait_for_pins(world);
        world.unmap_observer();
        world.release();
        let replaced = world.unpublish();
        let Ok(()) = world.wait_for_readers(replaced);
    });
}

#[test]
#[should_panic(expected = "not there")]
fn loom_must_fail_the_slot_is_deleted_last() {
    removal(&[Vcpu], |mut world| {
        let replaced = world.unpublish();
        let Ok(()) = world.wait_for_readers(replaced);
        World::wait_for_pins(world);
        world.release();
        world.delete_slot();
    });
}

#[test]
#[should_panic(expected = "not there")]
fn loom_must_fail_observers_unmap_last() {
    removal(&[ObserversDevice], |mut world| {
        let replaced = world.unpublish();
        world.delete_slot();
        let Ok(()) = world.wait_for_readers(replaced);
        World::wait_for_pins(world);
        world.release();
        world.unmap_observer();
    });
}

#[test]
#[should_panic(expected = "yet to map")]
fn loom_must_fail_the_guest_sees_what_no_observer_has_mapped() {
    insertion(|mut world| {
        world.reserve();
        let Ok(()) = world.create_slots();
        let Ok(()) = world.map();
        world.publish();
    });
}

#[test]
#[should_panic(expected = "yet to see")]
fn loom_must_fail_devices_see_what_the_guest_does_not() {
    insertion(|mut world| {
        world.reserve();
        let Ok(()) = world.map();
        world.publish();
        let Ok(()) = world.create_slots();
    });
}
