//! `Readers`: which thread reads which published value, and how a writer waits until nobody reads an old one.
//!
//! Hazard pointers. A reader notes the pointer it is about to follow in an entry of its own, fences, and looks whether the
//! pointer is still the published one; if not, it notes the new one. A writer exchanges the pointer, passes the
//! [`Barrier`], and looks through all entries: those that do not name the old pointer will never follow it. If one does,
//! the writer watches that reader, passes the barrier again and sleeps; a reader that is watched wakes it when it clears
//! an entry. Readers of the new value are not waited for, however many there are.
//!
//! All of it is free of `unsafe`: the pointers are compared here and followed in `published.rs`.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

use crate::barrier::{Barrier, light};
use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, Condvar, Mutex, Ordering, lock};

/// Read sections that a thread can have open at a time before it is taken to read everything. One exit opens two: the
/// bus and the memory map.
const ENTRIES: usize = 4;

/// What one thread reads. Only that thread writes the entries; on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Reader {
    /// The values it reads. A store here is a release, paired with the acquire of the writer that looks: what was read is
    /// read before the writer destroys it.
    entries: [AtomicPtr<()>; ENTRIES],
    /// Sections beyond those that have an entry.
    beyond: AtomicUsize,
    /// A writer sleeps until an entry is cleared. Cleared under the lock of `Readers`.
    watched: AtomicBool,
    fenced: bool,
}

/// An open read section: its entry, or the first number that is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section(usize);

impl Reader {
    fn new(fenced: bool) -> Self {
        Self {
            entries: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            beyond: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            fenced,
        }
    }

    /// Opens a section. What the pointer leads to stays as it is until [`close`](Self::close). To be called by the thread
    /// whose reader this is.
    #[inline]
    pub(crate) fn open<T>(&self, source: &AtomicPtr<T>) -> (*mut T, Section) {
        let mut entries = self.entries.iter().enumerate();
        let Some((index, entry)) = entries.find(|(_, entry)| entry.load(Ordering::Relaxed).is_null()) else {
            return self.open_beyond(source);
        };
        let mut value = source.load(Ordering::Acquire);
        loop {
            entry.store(value.cast(), Ordering::Release);
            light(self.fenced);
            // Published still, after the entry can be seen: a writer that exchanges it from now on finds the entry.
            let now = source.load(Ordering::Acquire);
            if now == value {
                return (value, Section(index));
            }
            value = now;
        }
    }

    #[cold]
    fn open_beyond<T>(&self, source: &AtomicPtr<T>) -> (*mut T, Section) {
        self.beyond.store(self.beyond.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        light(self.fenced);
        (source.load(Ordering::Acquire), Section(ENTRIES))
    }

    /// Ends a section. `true`: somebody waits for that, see [`Readers::wake`].
    #[inline]
    #[must_use]
    pub(crate) fn close(&self, Section(index): Section) -> bool {
        match self.entries.get(index) {
            Some(entry) => entry.store(ptr::null_mut(), Ordering::Release),
            None => self.beyond.store(self.beyond.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release),
        }
        light(self.fenced);
        self.watched.load(Ordering::Relaxed)
    }

    /// Whether a section is open. Exact on the thread whose reader this is.
    pub(crate) fn is_open(&self) -> bool {
        self.beyond.load(Ordering::Relaxed) != 0
            || self.entries.iter().any(|entry| !entry.load(Ordering::Relaxed).is_null())
    }

    /// Whether it may read `value`.
    fn may_see(&self, value: *const ()) -> bool {
        self.beyond.load(Ordering::Acquire) != 0
            || self.entries.iter().any(|entry| ptr::eq(entry.load(Ordering::Acquire), value))
    }
}

/// The readers of this process.
///
/// Lock order: the lock is innermost; nothing is called under it.
#[derive(Debug)]
pub(crate) struct Readers {
    lists: Mutex<Lists>,
    /// A watched reader has ended a section.
    left: Condvar,
    barrier: Barrier,
}

/// Readers are never freed: a thread that ends leaves its own to the next one.
#[derive(Debug, Default)]
struct Lists {
    in_use: Vec<&'static Reader>,
    free: Vec<&'static Reader>,
}

impl Readers {
    fn new(barrier: Barrier) -> Self {
        Self { lists: Mutex::new(Lists::default()), left: Condvar::new(), barrier }
    }

    /// A reader for a thread that has none.
    fn join(&self) -> &'static Reader {
        let mut lists = lock(&self.lists);
        let fenced = self.barrier.readers_are_fenced();
        let reader = lists.free.pop().unwrap_or_else(|| Box::leak(Box::new(Reader::new(fenced))));
        lists.in_use.push(reader);
        reader
    }

    /// Takes the reader of a thread that ends. One whose section was never ended stays what it is.
    fn leave(&self, reader: &'static Reader) {
        let mut lists = lock(&self.lists);
        if !reader.is_open() {
            lists.in_use.retain(|other| !ptr::eq(*other, reader));
            lists.free.push(reader);
        }
    }

    /// Wakes the writers that watch `reader`.
    #[cold]
    pub(crate) fn wake(&self, reader: &Reader) {
        let _lists = lock(&self.lists);
        reader.watched.store(false, Ordering::Relaxed);
        self.left.notify_all();
    }

    /// Whether nobody can read `value`, which is no longer published, for a reason that needs no barrier: there is no
    /// reader but the calling thread's own, whose entries it sees as they are. A thread that joins later finds the new value.
    pub(crate) fn unseen_by_all(&self, own: Option<&Reader>, value: *const ()) -> bool {
        let lists = lock(&self.lists);
        let own = |reader: &Reader| own.is_some_and(|own| ptr::eq(own, reader));
        lists.in_use.iter().all(|reader| own(reader) && !reader.may_see(value))
    }

    /// Blocks until nobody reads any of `values`, which are no longer published. No lock is held while it waits.
    pub(crate) fn wait_unseen(&self, values: impl Iterator<Item = *const ()>) {
        self.barrier.pass();
        for value in values {
            while let Some(reader) = self.watch(value) {
                self.barrier.pass();
                let lists = lock(&self.lists);
                // Not watched any more: it has ended a section meanwhile, perhaps not this one.
                if reader.may_see(value) && reader.watched.load(Ordering::Relaxed) {
                    drop(self.left.wait(lists).unwrap_or_else(std::sync::PoisonError::into_inner));
                }
            }
        }
    }

    /// Watches a reader that may read `value`, if there is one.
    fn watch(&self, value: *const ()) -> Option<&'static Reader> {
        let lists = lock(&self.lists);
        let reader = lists.in_use.iter().find(|reader| reader.may_see(value))?;
        reader.watched.store(true, Ordering::Relaxed);
        Some(reader)
    }
}

/// Those of this process.
pub(crate) fn readers() -> &'static Readers {
    static READERS: OnceLock<Readers> = OnceLock::new();
    READERS.get_or_init(|| Readers::new(Barrier::new()))
}

thread_local! {
    /// The reader of this thread. Apart from its end, so that access needs no look whether that has come.
    static READER: Cell<Option<&'static Reader>> = const { Cell::new(None) };
    static END: ThreadEnd = const { ThreadEnd(Cell::new(None)) };
}

/// Gives a thread's reader back.
struct ThreadEnd(Cell<Option<&'static Reader>>);

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        READER.set(None);
        if let Some(reader) = self.0.get() {
            readers().leave(reader);
        }
    }
}

/// The reader of the calling thread, if it has read anything.
pub(crate) fn own_reader() -> Option<&'static Reader> {
    READER.get()
}

/// The reader of the calling thread.
#[inline]
pub(crate) fn reader() -> &'static Reader {
    READER.get().unwrap_or_else(join)
}

#[cold]
fn join() -> &'static Reader {
    let reader = readers().join();
    READER.set(Some(reader));
    // Fails in a destructor after that of `END`: the reader is not given back then.
    let _ = END.try_with(|end| end.0.set(Some(reader)));
    reader
}

#[cfg(test)]
#[cfg(loom)]
#[path = "grace_loom.rs"]
mod loom_tests;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn leaked(fenced: bool) -> &'static Reader {
        Box::leak(Box::new(Reader::new(fenced)))
    }

    #[test]
    fn sections_end_in_any_order_and_in_any_number() {
        let reader = leaked(true);
        let values: [u8; ENTRIES + 2] = [0; ENTRIES + 2];
        let sources = values.each_ref().map(|value| AtomicPtr::new(ptr::from_ref(value).cast_mut()));
        let sections = sources.each_ref().map(|source| reader.open(source));
        // Beyond the entries, anything may be read.
        assert!(reader.may_see(ptr::null()));
        for (value, section) in &sections[ENTRIES..] {
            assert!(reader.may_see(value.cast()));
            assert!(!reader.close(*section));
        }
        assert!(!reader.may_see(ptr::null::<u8>().wrapping_add(1).cast()));
        let (first, section) = sections[0];
        assert!(reader.may_see(first.cast()));
        assert!(!reader.close(section));
        assert!(!reader.may_see(first.cast()));
        // The entry that is free again.
        let (_, again) = reader.open(&sources[ENTRIES]);
        assert_eq!(again.0, 0);
        for section in sections[1..ENTRIES].iter().map(|(_, section)| *section).chain([again]) {
            assert!(reader.is_open());
            assert!(!reader.close(section));
        }
        assert!(!reader.is_open());
    }

    #[test]
    fn a_thread_that_ends_leaves_its_reader_to_the_next() {
        let readers = Readers::new(Barrier::fenced());
        let first = readers.join();
        assert!(!ptr::eq(first, readers.join()));
        readers.leave(first);
        assert!(ptr::eq(first, readers.join()));
    }

    #[test]
    fn a_reader_whose_section_never_ended_is_not_given_away() {
        let readers = Readers::new(Barrier::fenced());
        let reader = readers.join();
        let value = 0u8;
        let (seen, _) = reader.open(&AtomicPtr::new(ptr::from_ref(&value).cast_mut()));
        readers.leave(reader);
        assert!(!ptr::eq(reader, readers.join()));
        assert!(!readers.unseen_by_all(None, seen.cast()));
    }

    #[test]
    fn without_other_readers_no_barrier_is_needed() {
        let readers = Readers::new(Barrier::fenced());
        let value = 0u8;
        let source = AtomicPtr::new(ptr::from_ref(&value).cast_mut());
        assert!(readers.unseen_by_all(None, ptr::from_ref(&value).cast()));
        let own = readers.join();
        assert!(readers.unseen_by_all(Some(own), ptr::from_ref(&value).cast()));
        let (_, section) = own.open(&source);
        assert!(!readers.unseen_by_all(Some(own), ptr::from_ref(&value).cast()));
        assert!(!own.close(section));
        readers.join();
        assert!(!readers.unseen_by_all(Some(own), ptr::from_ref(&value).cast()));
    }
}
