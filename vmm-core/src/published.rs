//! `Published`: a table that many threads read on every exit and that one thread at a time replaces.
//!
//! What SRCU is to the kernel's memory slots and I/O buses, this cell is to the tables of this program. A reader
//! takes no lock ([`Published::load`]); a writer builds a new table, swaps it in and gets the old one back as
//! [`Retired`], whose [`wait`](Retired::wait) returns when no reader can see it any more.
//!
//! The cell holds `Arc<Node { value, gate }>`. Whoever drops the last reference to a node, most often a reader that
//! leaves its read section, only opens the gate: the value itself is kept alive by `Retired` and dies on the
//! updater's side, or on the reaper thread if the updater did not care to wait. So no exit ever pays for the
//! destruction of a table, or of a device that was in it.
//!
//! Lock order: the writer mutex of a cell is innermost; no user code but the `update` closure runs under it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use arc_swap::{ArcSwap, Guard};

use crate::sync::{Arc, Condvar, Mutex, lock};

thread_local! {
    /// How many read sections, of any cell, the current thread has open.
    static OPEN_SECTIONS: Cell<usize> = const { Cell::new(0) };
}

/// Whether the current thread is inside a read section of any [`Published`] cell.
#[must_use]
pub fn in_read_section() -> bool {
    OPEN_SECTIONS.get() != 0
}

/// Waiting for a grace period was refused because the waiting thread itself holds a [`ReadGuard`]: it would wait
/// for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a grace period cannot be waited for inside a read section of the same thread")]
pub struct InReadSection;

/// A door that opens once.
#[derive(Debug)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn new() -> Self {
        Self { open: Mutex::new(false), opened: Condvar::new() }
    }

    fn open(&self) {
        *lock(&self.open) = true;
        self.opened.notify_all();
    }

    fn is_open(&self) -> bool {
        *lock(&self.open)
    }

    fn wait(&self) {
        let mut open = lock(&self.open);
        while !*open {
            open = self.opened.wait(open).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// What the cell points at. Its drop says that the last reader is gone.
///
/// The order of the fields is the order of their drops: the reference to the value goes first, so that once the gate
/// is open the updater's reference is the only one.
#[derive(Debug)]
struct Node<T> {
    value: Arc<T>,
    gate: OpenOnDrop,
}

#[derive(Debug)]
struct OpenOnDrop(Arc<Gate>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl<T> Node<T> {
    fn new(value: T) -> Self {
        Self { value: Arc::new(value), gate: OpenOnDrop(Arc::new(Gate::new())) }
    }
}

impl<T: Send + Sync + 'static> Node<T> {
    /// The updater's share of a node that was just taken out of its cell.
    fn retire(&self) -> Retired<T> {
        Retired { value: Some(Arc::clone(&self.value)), gate: Arc::clone(&self.gate.0) }
    }
}

/// A value that is read without a lock and replaced as a whole. See the module documentation.
#[derive(Debug)]
pub struct Published<T> {
    current: ArcSwap<Node<T>>,
    writer: Mutex<()>,
}

impl<T> Published<T> {
    /// Publishes the first value.
    pub fn new(value: T) -> Self {
        Self { current: ArcSwap::from_pointee(Node::new(value)), writer: Mutex::new(()) }
    }

    /// Opens a read section and gives the value as it is now. Takes no lock and does not wait for writers.
    ///
    /// A read section is one exit or one batch of a queue: the guard is not stored, and nothing that waits for
    /// other threads is done under it.
    #[must_use]
    pub fn load(&self) -> ReadGuard<'_, T> {
        OPEN_SECTIONS.set(OPEN_SECTIONS.get() + 1);
        ReadGuard { node: self.current.load(), cell: PhantomData, thread_bound: PhantomData }
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
        let next = f(&self.current.load().value)?;
        Ok(self.current.swap(Node::new(next).into()).retire())
    }
}

/// A read section: dereferences to the value as it was when the section was opened.
///
/// Not `Send`: the section is counted in the thread that opened it.
#[derive(Debug)]
pub struct ReadGuard<'a, T> {
    node: Guard<std::sync::Arc<Node<T>>>,
    cell: PhantomData<&'a Published<T>>,
    thread_bound: PhantomData<*const ()>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.node.value
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        OPEN_SECTIONS.set(OPEN_SECTIONS.get() - 1);
    }
}

/// A value that was replaced and that readers may still see.
///
/// Dropped without [`wait`](Retired::wait), it is handed to the reaper thread, which destroys it once the last reader
/// is gone.
#[must_use = "the old value may still be in use: wait() before freeing what it refers to"]
#[derive(Debug)]
pub struct Retired<T: Send + Sync + 'static> {
    value: Option<Arc<T>>,
    gate: Arc<Gate>,
}

impl<T: Send + Sync + 'static> Retired<T> {
    /// Blocks until no reader can see the old value, then destroys it here.
    ///
    /// # Errors
    /// [`InReadSection`] if this thread has a read section open; the value then goes to the reaper.
    pub fn wait(mut self) -> Result<(), InReadSection> {
        if in_read_section() {
            return Err(InReadSection);
        }
        self.gate.wait();
        self.value = None;
        Ok(())
    }
}

impl<T: Send + Sync + 'static> Drop for Retired<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take()
            && !self.gate.is_open()
        {
            reap(Retiree { gate: Arc::clone(&self.gate), value: Box::new(value) });
        }
    }
}

/// What the reaper waits for, and what it then destroys.
struct Retiree {
    gate: Arc<Gate>,
    value: Box<dyn Send>,
}

/// Hands `retiree` to the reaper thread, which is started by the first call.
fn reap(retiree: Retiree) {
    static REAPER: OnceLock<Option<Sender<Retiree>>> = OnceLock::new();
    let reaper = REAPER.get_or_init(|| {
        let (sender, receiver) = channel::<Retiree>();
        let spawned = std::thread::Builder::new().name("reaper".into()).spawn(move || {
            for Retiree { gate, value } in receiver {
                gate.wait();
                drop(value);
            }
        });
        spawned.map(|_| sender).ok()
    });
    if let Some(reaper) = reaper {
        // The receiver lives as long as the process. Without a thread the value dies with its last reference,
        // wherever that is: late and in the wrong place, but never too early.
        let _ = reaper.send(retiree);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::*;

    /// Panics unless it is destroyed by the thread that is said to be the updater.
    struct UpdatersOnly(loom::thread::ThreadId);

    impl Drop for UpdatersOnly {
        fn drop(&mut self) {
            assert!(loom::thread::current().id() == self.0, "a reader destroyed the value");
        }
    }

    /// The last reader leaves while the updater waits: `wait` never sleeps for ever, and whoever comes first, the
    /// value dies on the updater's side.
    #[test]
    fn loom_the_last_reader_opens_the_gate_and_never_destroys_the_value() {
        loom::model(|| {
            let node = Node::new(UpdatersOnly(loom::thread::current().id()));
            let retired = node.retire();
            let reader = loom::thread::spawn(move || drop(node));
            retired.wait().unwrap();
            reader.join().unwrap();
        });
    }

    /// The same with the fields of the node the other way round: the model finds the reader that destroys the value.
    #[test]
    #[should_panic(expected = "a reader destroyed the value")]
    fn loom_must_fail_gate_opened_before_the_value_is_let_go() {
        loom::model(|| {
            let value = Arc::new(UpdatersOnly(loom::thread::current().id()));
            let gate = Arc::new(Gate::new());
            let retired = Retired { value: Some(Arc::clone(&value)), gate: Arc::clone(&gate) };
            let reader = loom::thread::spawn(move || {
                drop(OpenOnDrop(gate));
                drop(value);
            });
            retired.wait().unwrap();
            reader.join().unwrap();
        });
    }
}
