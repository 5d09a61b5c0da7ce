//! Loom models of the grace protocol: the real `Reader` and `Readers`, with values that must not be destroyed under a
//! reader.
//!
//! loom has no membarrier, so both sides fence here. That the kernel's barrier stands for a fence in every thread at once
//! is its contract (membarrier(2)), and what the asymmetric form rests on.
//!
//! Beside the models that must pass stand those that must fail: each leaves one step out, and the checker finds the reader
//! whose value is destroyed, or the writer that nobody wakes.

// Not loom's `Arc`: when a model that must fail fails, its drops would panic a second time.
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use super::*;

/// A published pointer, the values that it leads to one after the other, and the readers. loom reports a value that is
/// read and destroyed at the same time.
struct World {
    readers: Readers,
    source: AtomicPtr<UnsafeCell<()>>,
    values: [Box<UnsafeCell<()>>; 2],
}

impl World {
    fn new() -> Arc<Self> {
        let values = [(); 2].map(|()| Box::new(UnsafeCell::new(())));
        let source = AtomicPtr::new(address(&values[0]));
        Arc::new(Self { readers: Readers::new(Barrier::fenced()), source, values })
    }

    /// Reads what `value` points to.
    fn follow(&self, value: *mut UnsafeCell<()>) {
        let value = self.values.iter().find(|known| address(known) == value).unwrap();
        value.with(|_| ());
    }

    /// What a reader does.
    fn read(&self, reader: &'static Reader) {
        let (value, section) = reader.open(&self.source, none);
        self.follow(value);
        if section.close() {
            self.readers.wake(reader);
        }
    }

    /// Takes the first value out; returns it as the readers' entries name it.
    fn replace(&self) -> *const () {
        let old = self.source.swap(address(&self.values[1]), Ordering::SeqCst);
        assert_eq!(old, address(&self.values[0]));
        old.cast_const().cast()
    }

    fn destroy_first(&self) {
        self.values[0].with_mut(|_| ());
    }
}

fn none() -> &'static Reader {
    panic!("no second reader is needed")
}

fn address(value: &UnsafeCell<()>) -> *mut UnsafeCell<()> {
    ptr::from_ref(value).cast_mut()
}

/// One thread that does `read` with a reader of its own, while this one does `write`.
fn model(
    read: impl Fn(&World, &'static Reader) + Clone + Send + Sync + 'static,
    write: impl Fn(&World) + Send + Sync + 'static,
) {
    loom::model(move || {
        let world = World::new();
        let reader = world.readers.join();
        let thread = thread::spawn({
            let (world, read) = (Arc::clone(&world), read.clone());
            move || read(&world, reader)
        });
        write(&world);
        thread.join().unwrap();
    });
}

fn replace_wait_destroy(world: &World) {
    let old = world.replace();
    world.readers.wait_unseen([old].into_iter());
    world.destroy_first();
}

#[test]
fn loom_a_value_is_destroyed_when_nobody_reads_it_and_its_writer_is_woken() {
    model(World::read, replace_wait_destroy);
}

#[test]
fn loom_a_reader_that_comes_again_is_not_waited_for() {
    let twice = |world: &World, reader: &'static Reader| {
        world.read(reader);
        world.read(reader);
    };
    model(twice, replace_wait_destroy);
}

/// The inner section may outlive the outer one's value; both are entries of one reader.
#[test]
fn loom_a_section_inside_another_is_an_entry_of_its_own() {
    let nested = |world: &World, reader: &'static Reader| {
        let (outer, outer_section) = reader.open(&world.source, none);
        world.read(reader);
        world.follow(outer);
        if outer_section.close() {
            world.readers.wake(reader);
        }
    };
    model(nested, replace_wait_destroy);
}

/// Two writers wait for the same reader at once, each for a value of its own.
#[test]
fn loom_two_writers_that_watch_one_reader_are_both_woken() {
    loom::model(|| {
        let (one, other) = (World::new(), World::new());
        let reader = one.readers.join();
        let both = {
            let (one, other) = (Arc::clone(&one), Arc::clone(&other));
            move || {
                let (first, first_section) = reader.open(&one.source, none);
                let (second, second_section) = reader.open(&other.source, none);
                one.follow(first);
                other.follow(second);
                for section in [first_section, second_section] {
                    if section.close() {
                        one.readers.wake(reader);
                    }
                }
            }
        };
        let reading = thread::spawn(both);
        let writing = thread::spawn({
            let (one, other) = (Arc::clone(&one), Arc::clone(&other));
            move || {
                let old = other.replace();
                one.readers.wait_unseen([old].into_iter());
                other.destroy_first();
            }
        });
        replace_wait_destroy(&one);
        reading.join().unwrap();
        writing.join().unwrap();
    });
}

/// A thread reads for the first time while a value is replaced: it has no entry that the writer could find.
#[test]
fn loom_a_thread_that_joins_late_finds_the_new_value() {
    loom::model(|| {
        let world = World::new();
        let thread = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let reader = world.readers.join();
                world.read(reader);
                world.readers.leave(reader);
            }
        });
        let old = world.replace();
        if !world.readers.unseen_by_all(None, old) {
            world.readers.wait_unseen([old].into_iter());
        }
        world.destroy_first();
        thread.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_must_fail_the_writer_does_not_wait() {
    model(World::read, |world| {
        world.replace();
        world.destroy_first();
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_must_fail_the_reader_does_not_look_again() {
    let read = |world: &World, reader: &'static Reader| {
        let value = world.source.load(Ordering::Acquire);
        reader.entries[0].store(value.cast(), Ordering::Release);
        light(true);
        world.follow(value);
        if (Section { entry: &reader.entries[0], reader }).close() {
            world.readers.wake(reader);
        }
    };
    model(read, replace_wait_destroy);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_must_fail_no_fence_between_entry_and_look() {
    let read = |world: &World, reader: &'static Reader| {
        let value = world.source.load(Ordering::Acquire);
        reader.entries[0].store(value.cast(), Ordering::Release);
        if world.source.load(Ordering::Acquire) == value {
            world.follow(value);
        }
        if (Section { entry: &reader.entries[0], reader }).close() {
            world.readers.wake(reader);
        }
    };
    model(read, replace_wait_destroy);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_must_fail_the_writer_passes_no_barrier() {
    model(World::read, |world| {
        let old = world.source.swap(address(&world.values[1]), Ordering::AcqRel).cast_const().cast();
        while let Some(reader) = world.readers.watch(old) {
            world.readers.barrier.pass();
            let lists = lock(&world.readers.lists);
            if reader.may_see(old) && reader.is_watched() {
                drop(world.readers.left.wait(lists).unwrap());
            }
        }
        world.destroy_first();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_the_reader_looks_whether_it_is_watched_too_early() {
    let read = |world: &World, reader: &'static Reader| {
        let (value, section) = reader.open(&world.source, none);
        world.follow(value);
        let watched = reader.is_watched();
        let _ = section.close();
        if watched {
            world.readers.wake(reader);
        }
    };
    model(read, replace_wait_destroy);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_must_fail_no_barrier_between_watching_and_sleep() {
    model(World::read, |world| {
        let old = world.replace();
        world.readers.barrier.pass();
        while let Some(reader) = world.readers.watch(old) {
            let lists = lock(&world.readers.lists);
            if reader.may_see(old) && reader.is_watched() {
                drop(world.readers.left.wait(lists).unwrap());
            }
        }
        world.destroy_first();
    });
}
