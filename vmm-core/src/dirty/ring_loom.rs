//! Loom models of a dirty ring: the real reader against a KVM that names pages as a vCPU writes to them, and resets what was
//! read.
//!
//! A page is protected, or written to without KVM's notice. The vCPU's write is a number; what must hold in the end is that
//! whoever looks at a page after it was read from the ring and reset has seen the last number, or finds the page in the
//! ring again.
//!
//! Beside the models that must pass stand those that must fail: each leaves one step out or takes two in the wrong order.

// Not loom's `Arc`: when a model that must fail fails, its drops would panic a second time.
use std::sync::Arc;

use loom::thread;

use super::ring::{DirtyRing, RingEntry, RingMapping, RingPage};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// A ring of two entries and one page.
struct World {
    entries: Arc<[RingEntry; 2]>,
    /// What is in the page.
    content: AtomicU64,
    /// Whether a write is noticed. KVM's lock of its page tables.
    protected: Mutex<bool>,
    /// The entry that KVM fills next, and the one that it resets next.
    cursors: Mutex<(usize, usize)>,
}

struct Shared(Arc<[RingEntry; 2]>);

impl RingMapping for Shared {
    fn entries(&self) -> &[RingEntry] {
        &*self.0
    }
}

const PAGE: RingPage = RingPage { slot: 1, page: 5 };

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Arc::new([RingEntry::default(), RingEntry::default()]),
            content: AtomicU64::new(0),
            protected: Mutex::new(true),
            cursors: Mutex::new((0, 0)),
        })
    }

    fn ring(&self) -> DirtyRing {
        DirtyRing::new(Box::new(Shared(Arc::clone(&self.entries))))
    }

    /// The vCPU writes to the page. KVM names it if it was protected.
    fn write(&self, number: u64) {
        let mut protected = lock(&self.protected);
        if std::mem::replace(&mut *protected, false) {
            let fill = {
                let mut cursors = lock(&self.cursors);
                let fill = cursors.0;
                cursors.0 = 1 - fill;
                fill
            };
            assert!(self.entries[fill].name(PAGE), "the ring is full");
        }
        self.content.store(number, Ordering::Relaxed);
    }

    /// `KVM_RESET_DIRTY_RINGS`.
    fn reset(&self) {
        let mut protected = lock(&self.protected);
        let mut cursors = lock(&self.cursors);
        while self.entries[cursors.1].reset() {
            cursors.1 = 1 - cursors.1;
            *protected = true;
        }
    }

    /// One harvest: whether the page is in the ring, and then what it has.
    fn harvest(&self, ring: &mut DirtyRing) -> Option<u64> {
        let page = ring.take()?;
        assert_eq!(page, PAGE);
        self.reset();
        // With the lock, as a later write is noticed with it.
        let _protected = lock(&self.protected);
        Some(self.content.load(Ordering::Relaxed))
    }
}

/// A vCPU that writes twice, and somebody who harvests with `harvest` meanwhile and once afterwards.
fn model(harvest: impl Fn(&World, &mut DirtyRing) -> Option<u64> + Send + Sync + 'static) {
    loom::model(move || {
        let world = World::new();
        let vcpu = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                world.write(1);
                world.write(2);
            }
        });
        let mut ring = world.ring();
        let mut seen = harvest(&world, &mut ring);
        vcpu.join().unwrap();
        while let Some(content) = harvest(&world, &mut ring) {
            seen = Some(content);
        }
        assert_eq!(seen, Some(2), "a write is lost");
    });
}

#[test]
fn loom_no_write_is_lost_between_the_ring_and_the_page() {
    model(World::harvest);
}

#[test]
#[should_panic(expected = "a write is lost")]
fn loom_a_page_that_is_looked_at_before_the_reset_loses_a_write() {
    model(|world, ring| {
        ring.take()?;
        let content = world.content.load(Ordering::Relaxed);
        world.reset();
        Some(content)
    });
}

/// An entry whose flag is read and changed by `read` in place of the real reader; the page that KVM names is its own number.
/// KVM names a second one if it finds the entry read.
fn named(read: impl Fn(&RingEntry, &mut DirtyRing) -> Option<u64> + Send + Sync + 'static) {
    loom::model(move || {
        let world = World::new();
        let kvm = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let entry = &world.entries[0];
                assert!(entry.name(RingPage { slot: 0, page: 1 }));
                if entry.reset() {
                    assert!(entry.name(RingPage { slot: 0, page: 2 }));
                }
            }
        });
        // Always a reader at the first entry, the only one that is used.
        let read = || read(&world.entries[0], &mut world.ring());
        let mut found: Vec<_> = read().into_iter().collect();
        kvm.join().unwrap();
        found.extend(read());
        let expected = if found.len() == 1 { vec![1] } else { vec![1, 2] };
        assert_eq!(found, expected, "an entry is torn");
    });
}

#[test]
fn loom_an_entry_is_read_whole_before_it_is_used_anew() {
    named(|_, ring| ring.take().map(|page| page.page));
}

#[test]
#[should_panic(expected = "an entry is torn")]
fn loom_an_entry_that_is_given_back_before_it_is_read_is_torn() {
    named(|entry, _| entry.take_backwards());
}
