//! `Published`: a table that many threads read on every exit and that one thread at a time replaces.
//!
//! What SRCU is to the kernel's memory slots and I/O buses, this cell is to the tables of this program. A reader
//! takes no lock and executes no locked instruction ([`Published::load`]); a writer builds a new table, swaps it in and
//! gets the old one back as [`Retired`], whose [`wait`](Retired::wait) returns when no reader can see it any more. How that
//! is known is in `grace.rs`.
//!
//! No reader owns a share of the table: an old one dies on the updater's side, or on the reaper thread if the updater did
//! not care to wait. So no exit ever pays for the destruction of a table, or of a device that was in it.
//!
//! Whoever waits for one old value waits for all older ones of the cell too: a device may be in several tables that
//! nobody has waited for, and must not be called by a reader of any of them.
//!
//! Lock order: the writer mutex of a cell, in it the lock of its old values, which is innermost; no user code but the
//! `update` closure runs under them.
#![expect(unsafe_code, reason = "follows pointers that the grace protocol protects")]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};

use crate::grace::{Reader, Section, another_reader, own_reader, reader, readers};
use crate::sync::{AtomicPtr, Mutex, Ordering, lock};
use crate::thread::{self, Kind, calls};

/// Prepares this process for reading, which its first reader does otherwise. To be called before a second thread is started:
/// the kernel then takes microseconds to register the process for barriers, and some 10 ms, a grace period of its own, beside
/// other threads.
pub fn prepare_readers() {
    let _ = readers();
}

/// Whether the current thread is inside a read section of any [`Published`] cell.
#[must_use]
pub fn in_read_section() -> bool {
    own_reader().is_some_and(Reader::is_open)
}

/// Waiting for a grace period was refused because the waiting thread itself holds a [`ReadGuard`]: it would wait
/// for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a grace period cannot be waited for inside a read section of the same thread")]
pub struct InReadSection;

/// A value that is read without a lock and replaced as a whole. See the module documentation.
pub struct Published<T> {
    /// From [`Arc::into_raw`]; this cell owns the count.
    current: AtomicPtr<T>,
    writer: Mutex<()>,
    old: Arc<OldValues<T>>,
    owned: PhantomData<Arc<T>>,
}

/// Values that were replaced, the oldest first; those that are destroyed already are taken out by the next update. A `Weak`
/// keeps the address from being used again.
type OldValues<T> = Mutex<Vec<Weak<T>>>;

impl<T> Published<T> {
    /// Publishes the first value.
    pub fn new(value: T) -> Self {
        Self {
            current: AtomicPtr::new(into_raw(value)),
            writer: Mutex::new(()),
            old: Arc::new(Mutex::new(Vec::new())),
            owned: PhantomData,
        }
    }

    /// Opens a read section and gives the value as it is now. Takes no lock and does not wait for writers.
    ///
    /// A read section is one exit or one batch of a queue: the guard is not stored, not forgotten, and nothing that waits
    /// for other threads is done under it.
    #[must_use]
    #[inline]
    pub fn load(&self) -> ReadGuard<'_, T> {
        let (value, section) = reader().open(&self.current, another_reader);
        ReadGuard { value, section, cell: PhantomData }
    }
}

impl<T: Send + Sync + 'static> Published<T> {
    /// Replaces the value by `f(current)`; concurrent updates take turns, readers go on. An error of `f` leaves
    /// everything as it was.
    ///
    /// `f` runs under the writer mutex of this cell: it must not update the same cell. The old value comes back as
    /// [`Retired`]; wait for it after every lock is released.
    pub fn update<E>(&self, f: impl FnOnce(&T) -> Result<T, E>) -> Result<Retired<T>, E> {
        let _turn = lock(&self.writer);
        // SAFETY:
        // - the pointer is from `into_raw`, and the cell owns the count behind it;
        // - only `update` takes it out of the cell, and this call has the turn.
        let current = unsafe { &*self.current.load(Ordering::Acquire) };
        let old = self.current.swap(into_raw(f(current)?), Ordering::SeqCst);
        // SAFETY:
        // - the pointer is from `into_raw`, and the swap has taken it, with its count, out of the cell;
        // - readers that still follow it are waited for before the count is given up: see `Retired`.
        let value = unsafe { Arc::from_raw(old) };
        let mut values = lock(&self.old);
        values.retain(|old| old.strong_count() != 0);
        values.push(Arc::downgrade(&value));
        Ok(Retired { value: Some(value), old: Arc::clone(&self.old), older: Vec::new() })
    }
}

fn into_raw<T>(value: T) -> *mut T {
    Arc::into_raw(Arc::new(value)).cast_mut()
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY:
        // - the pointer is from `into_raw`, and the cell, which ends here, owns the count behind it;
        // - no guard is left, as each borrows the cell.
        drop(unsafe { Arc::from_raw(current) });
    }
}

impl<T: fmt::Debug> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(&*self.load()).finish()
    }
}

/// A read section: dereferences to the value as it was when the section was opened.
///
/// Not `Send`: the section is counted in the thread that opened it.
pub struct ReadGuard<'a, T> {
    value: *const T,
    section: Section,
    cell: PhantomData<&'a Published<T>>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY:
        // - the pointer is from `into_raw`, and was in its cell after `section` could be seen;
        // - whoever takes it out of the cell gives its count up only when no section names it, and this one still does;
        // - it is only read, by everybody.
        unsafe { &*self.value }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.section.close() {
            readers().wake(self.section.reader());
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadGuard").field(&**self).finish()
    }
}

/// A value that was replaced and that readers may still see.
///
/// Dropped without [`wait`](Retired::wait), it is handed to the reaper thread, which destroys it once the last reader
/// is gone.
#[must_use = "the old value may still be in use: wait() before freeing what it refers to"]
#[derive(Debug)]
pub struct Retired<T: Send + Sync + 'static> {
    /// Given up only when no reader can follow the pointer.
    value: Option<Arc<T>>,
    /// Those of the cell, this one among them.
    old: Arc<OldValues<T>>,
    /// Others that end with this one.
    older: Vec<Retired<T>>,
}

impl<T: Send + Sync + 'static> Retired<T> {
    /// Blocks until no reader can see the old value or one that is older, then destroys it here. No reader of a newer value
    /// is waited for, and none of another cell. Many calls in a row take up to 1 ms each: see `barrier.rs`.
    ///
    /// # Errors
    /// [`InReadSection`] if this thread has a read section open; the value then goes to the reaper.
    pub fn wait(mut self) -> Result<(), InReadSection> {
        if in_read_section() {
            return Err(InReadSection);
        }
        if let Some(value) = self.value.take() {
            if !readers().unseen_by_all(own_reader(), address(&value)) {
                let waited = self.up_to(&value);
                readers().wait_unseen(waited.iter().map(|old| old.as_ptr().cast()));
                for older in &mut self.older {
                    let is_unseen =
                        |value: &mut Arc<T>| waited.iter().any(|old| old.as_ptr() == Arc::as_ptr(value));
                    drop(older.value.take_if(is_unseen));
                }
            }
            drop(value);
        }
        Ok(())
    }

    /// Takes values of the same cell that were replaced before this one, so that one wait is for all: it destroys them too,
    /// instead of the reaper.
    pub fn with_older(mut self, older: impl IntoIterator<Item = Self>) -> Self {
        self.older.extend(older);
        self
    }

    /// `value` and those that are older and not destroyed.
    fn up_to(&self, value: &Arc<T>) -> Vec<Weak<T>> {
        let values = lock(&self.old);
        let older = values.iter().take_while(|old| old.as_ptr() != Arc::as_ptr(value));
        older.cloned().chain([Arc::downgrade(value)]).collect()
    }
}

fn address<T>(value: &Arc<T>) -> *const () {
    Arc::as_ptr(value).cast()
}

impl<T: Send + Sync + 'static> Drop for Retired<T> {
    fn drop(&mut self) {
        // Inside an exit nothing is destroyed, though nobody reads it.
        if let Some(value) = self.value.take()
            && (in_read_section() || !readers().unseen_by_all(own_reader(), address(&value)))
        {
            reap(Box::new(value));
        }
    }
}

/// What the reaper waits for, and then destroys.
trait Retiree: Send {
    /// What no reader may see any more.
    fn address(&self) -> *const ();
}

impl<T: Send + Sync> Retiree for Arc<T> {
    fn address(&self) -> *const () {
        address(self)
    }
}

/// `reaper`: destroys published values for those who do not wait until nobody reads them.
pub static REAPER: Kind = Kind { name: "reaper", tables: &[calls::PUBLISHING, calls::ROUTES] };

/// Hands `retiree` to the reaper thread, which is started by the first call.
fn reap(retiree: Box<dyn Retiree>) {
    static THREAD: OnceLock<Option<Sender<Box<dyn Retiree>>>> = OnceLock::new();
    let reaper = THREAD.get_or_init(|| {
        let (sender, receiver) = channel();
        let spawned = thread::spawn(&REAPER, REAPER.name, move || reap_all(&receiver));
        spawned.map(|_| sender).ok()
    });
    let unreaped = match reaper {
        Some(reaper) => reaper.send(retiree).err().map(|refused| refused.0),
        None => Some(retiree),
    };
    // Without the thread nobody can wait here: what readers may see is never destroyed.
    std::mem::forget(unreaped);
}

fn reap_all(receiver: &Receiver<Box<dyn Retiree>>) {
    while let Ok(first) = receiver.recv() {
        // What has come meanwhile has its grace period in the same time.
        let retirees: Vec<_> = std::iter::once(first).chain(receiver.try_iter()).collect();
        readers().wait_unseen(retirees.iter().map(|retiree| retiree.address()));
        for retiree in retirees {
            // The panic hook has said it; the next ones are to be destroyed all the same.
            drop(catch_unwind(AssertUnwindSafe(|| drop(retiree))));
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;

    /// Counts its drops and remembers on which thread the last one happened.
    struct Witness {
        drops: Arc<Mutex<Vec<std::thread::ThreadId>>>,
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            lock(&self.drops).push(std::thread::current().id());
        }
    }

    fn replace<T: Send + Sync + 'static>(cell: &Published<T>, value: T) -> Retired<T> {
        cell.update(|_| Ok::<_, Infallible>(value)).unwrap()
    }

    #[test]
    fn a_reader_keeps_seeing_the_value_it_loaded() {
        let cell = Published::new(1);
        let guard = cell.load();
        let retired = replace(&cell, 2);
        assert_eq!((*guard, *cell.load()), (1, 2));
        drop(guard);
        retired.wait().unwrap();
    }

    #[test]
    fn wait_inside_a_read_section_is_refused() {
        let cell = Published::new(1);
        let other = Published::new("table");
        let section = other.load();
        assert_eq!(replace(&cell, 2).wait(), Err(InReadSection));
        drop(section);
        assert_eq!(replace(&cell, 3).wait(), Ok(()));
    }

    #[test]
    fn wait_returns_only_after_the_last_reader() {
        let cell = Published::new(1);
        let reader_done = AtomicBool::new(false);
        let (ready, go) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let guard = cell.load();
                ready.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
                reader_done.store(true, Ordering::SeqCst);
                drop(guard);
            });
            go.recv().unwrap();
            replace(&cell, 2).wait().unwrap();
            assert!(reader_done.load(Ordering::SeqCst));
        });
    }

    #[test]
    fn wait_returns_only_after_the_readers_of_older_values_too() {
        let cell = Published::new(1);
        let reader_done = AtomicBool::new(false);
        let (ready, go) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let guard = cell.load();
                ready.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
                reader_done.store(true, Ordering::SeqCst);
                drop(guard);
            });
            go.recv().unwrap();
            drop(replace(&cell, 2));
            replace(&cell, 3).wait().unwrap();
            assert!(reader_done.load(Ordering::SeqCst));
            // What nobody waits for is not kept in mind for ever.
            replace(&cell, 4).wait().unwrap();
            assert!(lock(&cell.old).len() <= 2);
        });
    }

    #[test]
    fn readers_of_a_newer_value_and_of_other_cells_are_not_waited_for() {
        let (cell, other) = (Published::new(1), Published::new(1));
        let (ready, go) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (cell, other) = (&cell, &other);
            let retired = replace(cell, 2);
            scope.spawn(move || {
                let guards = (cell.load(), other.load());
                ready.send(()).unwrap();
                assert!(ended.recv().is_err());
                drop(guards);
            });
            go.recv().unwrap();
            retired.wait().unwrap();
            drop(end);
        });
    }

    #[test]
    fn the_old_value_dies_on_the_updaters_side_not_in_the_reader() {
        let drops = Arc::new(Mutex::new(Vec::new()));
        let cell = Published::new(Some(Witness { drops: Arc::clone(&drops) }));
        let (ready, go) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let cell = &cell;
            let reader = scope.spawn(move || {
                let guard = cell.load();
                ready.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(10));
                drop(guard);
                std::thread::current().id()
            });
            go.recv().unwrap();
            replace(cell, None).wait().unwrap();
            assert_eq!(*lock(&drops), [std::thread::current().id()]);
            assert_ne!(reader.join().unwrap(), std::thread::current().id());
        });
    }

    #[test]
    fn an_unawaited_value_is_destroyed_by_the_reaper_and_not_by_the_reader() {
        let drops = Arc::new(Mutex::new(Vec::new()));
        let cell = Published::new(Some(Witness { drops: Arc::clone(&drops) }));
        let guard = cell.load();
        drop(replace(&cell, None));
        assert!(lock(&drops).is_empty());
        drop(guard);
        while lock(&drops).is_empty() {
            std::thread::yield_now();
        }
        assert_ne!(*lock(&drops), [std::thread::current().id()]);
    }

    #[test]
    fn what_is_replaced_inside_a_read_section_is_destroyed_elsewhere() {
        let drops = Arc::new(Mutex::new(Vec::new()));
        let cell = Published::new(Some(Witness { drops: Arc::clone(&drops) }));
        let other = Published::new(1);
        let section = other.load();
        drop(replace(&cell, None));
        while lock(&drops).is_empty() {
            std::thread::yield_now();
        }
        assert_ne!(*lock(&drops), [std::thread::current().id()]);
        drop(section);
    }

    #[test]
    fn fault_d3_a_value_that_panics_when_it_is_destroyed_takes_no_other_with_it() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("a bug in a device");
            }
        }
        let bombs = Published::new(Some(Bomb));
        let guard = bombs.load();
        drop(replace(&bombs, None));
        drop(guard);
        let drops = Arc::new(Mutex::new(Vec::new()));
        let cell = Published::new(Some(Witness { drops: Arc::clone(&drops) }));
        let guard = cell.load();
        drop(replace(&cell, None));
        assert!(lock(&drops).is_empty(), "somebody reads it");
        drop(guard);
        while lock(&drops).is_empty() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_wait_was_given_dies_with_it_and_what_it_has_not_waited_for_does_not() {
        let drops = Arc::new(Mutex::new(Vec::new()));
        let witness = || Some(Witness { drops: Arc::clone(&drops) });
        let cell = Published::new(witness());
        let foreign = Published::new(witness());
        let (ready, go) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (cell, foreign) = (&cell, &foreign);
            let first = replace(cell, witness());
            let second = replace(cell, None);
            scope.spawn(move || {
                let guard = foreign.load();
                ready.send(()).unwrap();
                assert!(ended.recv().is_err());
                drop(guard);
            });
            go.recv().unwrap();
            let read = replace(foreign, None);
            second.with_older([first, read]).wait().unwrap();
            assert_eq!(*lock(&drops), [std::thread::current().id(); 2]);
            drop(end);
        });
        while lock(&drops).len() < 3 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_failed_update_changes_nothing() {
        let cell = Published::new(7);
        assert_eq!(cell.update(|_| Err::<i32, _>("no")).unwrap_err(), "no");
        assert_eq!(*cell.load(), 7);
    }

    #[test]
    fn concurrent_updates_are_not_lost() {
        let cell = Published::new(0usize);
        let loads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        cell.update(|n| Ok::<_, Infallible>(n + 1)).unwrap().wait().unwrap();
                    }
                });
                scope.spawn(|| {
                    let mut last = 0;
                    for _ in 0..10_000 {
                        let now = *cell.load();
                        assert!(now >= last);
                        last = now;
                        loads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!((*cell.load(), loads.into_inner()), (2_000, 20_000));
    }
}
