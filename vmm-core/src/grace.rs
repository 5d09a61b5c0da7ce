//! `Readers`: which thread reads which published value, and how a writer waits until nobody reads an old one.
//!
//! Hazard pointers. A reader notes the pointer it is about to follow in an entry of its own, fences, and looks whether the
//! pointer is still the published one; if not, it notes the new one. A writer exchanges the pointer, passes the
//! [`Barrier`], and looks through all entries: those that do not name the old pointer will never follow it. If one does,
//! the writer watches that reader, passes the barrier again and sleeps; a reader that is watched wakes it when it clears
//! an entry. Readers of the new value are not waited for, however many there are, but for one that was on its way to the old
//! value: it may have noted that and not looked yet.
//!
//! All of it is free of `unsafe`: the pointers are compared here and followed in `published.rs`.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

use crate::barrier::{Barrier, light};
use crate::sync::{AtomicPtr, AtomicUsize, Condvar, Mutex, Ordering, lock};

/// Read sections that a thread can have open at a time before it needs another reader. One exit opens two: the bus and
/// the memory map.
const ENTRIES: usize = 4;

/// What one thread reads. Only that thread writes the entries; on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Reader {
    /// The values it reads. A store here is a release, paired with the acquire of the writer that looks: what was read is
    /// read before the writer destroys it.
    entries: [AtomicPtr<()>; ENTRIES],
    /// `FENCED` and `WATCHED`: what a section that ends has to do.
    duties: AtomicUsize,
    fenced: bool,
    /// Another one of the same thread, once it has more sections open than one has entries.
    next: OnceLock<&'static Reader>,
}

/// In `duties`, always or never: the reader does its own fences.
const FENCED: usize = 1;
/// In `duties`: a writer sleeps until an entry is cleared. Cleared under the lock of `Readers`.
const WATCHED: usize = 2;

/// An open read section: its entry, and whose that is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    entry: &'static AtomicPtr<()>,
    reader: &'static Reader,
}

/// In the first entry of a reader that fences: never free, so that [`Reader::open`] need not ask who fences.
const TAKEN: *mut () = ptr::without_provenance_mut(1);

impl Reader {
    fn new(fenced: bool) -> Self {
        let first = if fenced { TAKEN } else { ptr::null_mut() };
        Self {
            entries: std::array::from_fn(|index| {
                AtomicPtr::new(if index == 0 { first } else { ptr::null_mut() })
            }),
            duties: AtomicUsize::new(if fenced { FENCED } else { 0 }),
            fenced,
            next: OnceLock::new(),
        }
    }

    /// Opens a section. What the pointer leads to stays as it is until the section is [closed](Section::close). To be
    /// called by the thread whose reader this is; `more` makes another one for it.
    #[inline]
    pub(crate) fn open<T>(
        &'static self,
        source: &AtomicPtr<T>,
        more: impl Fn() -> &'static Self,
    ) -> (*mut T, Section) {
        let [first, ..] = &self.entries;
        if !first.load(Ordering::Relaxed).is_null() {
            return self.open_inner(source, more);
        }
        (Self::note(first, source, false), Section { entry: first, reader: self })
    }

    /// A section inside another, or of a reader that fences.
    #[cold]
    #[inline(never)]
    fn open_inner<T>(
        &'static self,
        source: &AtomicPtr<T>,
        more: impl Fn() -> &'static Self,
    ) -> (*mut T, Section) {
        let mut reader = self;
        loop {
            let mut entries = reader.entries.iter();
            if let Some(entry) = entries.find(|entry| entry.load(Ordering::Relaxed).is_null()) {
                return (Self::note(entry, source, reader.fenced), Section { entry, reader });
            }
            reader = reader.next.get_or_init(&more);
        }
    }

    #[inline]
    fn note<T>(entry: &AtomicPtr<()>, source: &AtomicPtr<T>, fenced: bool) -> *mut T {
        let mut value = source.load(Ordering::Acquire);
        loop {
            entry.store(value.cast(), Ordering::Release);
            light(fenced);
            // Published still, after the entry can be seen: a writer that exchanges it from now on finds the entry.
            let now = source.load(Ordering::Acquire);
            if now == value {
                // Not the first one: that may have been destroyed since, and this one be another at its address.
                return now;
            }
            value = now;
        }
    }

    /// Whether a section is open. Exact on the thread whose reader this is.
    pub(crate) fn is_open(&self) -> bool {
        let is_in_use = |value: *mut ()| !value.is_null() && value != TAKEN;
        self.entries.iter().any(|entry| is_in_use(entry.load(Ordering::Relaxed)))
            || self.next.get().is_some_and(|next| next.is_open())
    }

    /// Whether it may read `value`.
    fn may_see(&self, value: *const ()) -> bool {
        self.entries.iter().any(|entry| ptr::eq(entry.load(Ordering::Acquire), value))
    }

    fn is_watched(&self) -> bool {
        self.duties.load(Ordering::Relaxed) & WATCHED != 0
    }

    /// What is left to do when a section has ended. `true`: somebody waits for that.
    #[cold]
    #[inline(never)]
    fn is_watched_after_fence(&self) -> bool {
        light(self.fenced);
        self.is_watched()
    }
}

impl Section {
    /// Ends it. `true`: somebody waits for that, see [`Readers::wake`].
    #[inline]
    #[must_use]
    pub(crate) fn close(self) -> bool {
        self.entry.store(ptr::null_mut(), Ordering::Release);
        light(false);
        // Readers that fence look whether they are watched after that.
        self.reader.duties.load(Ordering::Relaxed) != 0 && self.reader.is_watched_after_fence()
    }

    /// Whose it is.
    pub(crate) fn reader(self) -> &'static Reader {
        self.reader
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
    pub(crate) fn new(barrier: Barrier) -> Self {
        Self { lists: Mutex::new(Lists::default()), left: Condvar::new(), barrier }
    }

    /// The fence between readers and writers.
    pub(crate) fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// A reader for a thread that has none.
    pub(crate) fn join(&self) -> &'static Reader {
        let mut lists = lock(&self.lists);
        let fenced = self.barrier.readers_are_fenced();
        let reader = lists.free.pop().unwrap_or_else(|| Box::leak(Box::new(Reader::new(fenced))));
        lists.in_use.push(reader);
        reader
    }

    /// Takes the reader of a thread that ends, with those that it has needed besides. One whose section was never ended
    /// stays what it is.
    fn leave(&self, reader: &'static Reader) {
        let mut lists = lock(&self.lists);
        if !reader.is_open() {
            lists.in_use.retain(|other| !ptr::eq(*other, reader));
            // The others stay its own, and in use, without an entry.
            lists.free.push(reader);
        }
    }

    /// Wakes the writers that watch `reader`.
    #[cold]
    pub(crate) fn wake(&self, reader: &Reader) {
        let _lists = lock(&self.lists);
        reader.duties.fetch_and(!WATCHED, Ordering::Relaxed);
        self.left.notify_all();
    }

    /// Whether nobody can read `value`, which is no longer published, for a reason that needs no barrier: there is no
    /// reader but the calling thread's own, whose entries it sees as they are. A thread that joins later finds the new value.
    pub(crate) fn unseen_by_all(&self, own: Option<&Reader>, value: *const ()) -> bool {
        let lists = lock(&self.lists);
        let is_own = |reader: &Reader| own.is_some_and(|own| ptr::eq(own, reader));
        lists.in_use.iter().all(|reader| is_own(reader) && !reader.may_see(value))
    }

    /// Blocks until nobody reads any of `values`, which are no longer published. No lock is held while it waits.
    pub(crate) fn wait_unseen(&self, values: impl Iterator<Item = *const ()>) {
        self.barrier.pass();
        for value in values {
            while let Some(reader) = self.watch(value) {
                self.barrier.pass();
                let lists = lock(&self.lists);
                // Not watched any more: it has ended a section meanwhile, perhaps not this one.
                if reader.may_see(value) && reader.is_watched() {
                    drop(self.left.wait(lists).unwrap_or_else(std::sync::PoisonError::into_inner));
                }
            }
        }
    }

    /// Watches a reader that may read `value`, if there is one.
    fn watch(&self, value: *const ()) -> Option<&'static Reader> {
        let lists = lock(&self.lists);
        let reader = lists.in_use.iter().find(|reader| reader.may_see(value))?;
        reader.duties.fetch_or(WATCHED, Ordering::Relaxed);
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

/// One more reader for the calling thread.
pub(crate) fn another_reader() -> &'static Reader {
    readers().join()
}

#[cold]
fn join() -> &'static Reader {
    let reader = another_reader();
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

    fn none() -> &'static Reader {
        panic!("no second reader is needed")
    }

    #[test]
    fn sections_end_in_any_order_and_in_any_number() {
        let (reader, second) = (leaked(false), leaked(false));
        let values: [u8; ENTRIES + 2] = [0; ENTRIES + 2];
        let sources = values.each_ref().map(|value| AtomicPtr::new(ptr::from_ref(value).cast_mut()));
        let sections = sources.each_ref().map(|source| reader.open(source, || second));
        for (index, (value, section)) in sections.iter().enumerate() {
            let owner = if index < ENTRIES { reader } else { second };
            assert!(ptr::eq(section.reader(), owner) && owner.may_see(value.cast()));
        }
        assert!(!sections[0].1.close());
        assert!(!reader.may_see(sections[0].0.cast()));
        // The entry that is free again.
        let (_, again) = reader.open(&sources[ENTRIES], none);
        assert!(ptr::eq(again.entry, &reader.entries[0]));
        for section in sections[1..].iter().map(|(_, section)| *section).chain([again]) {
            assert!(reader.is_open());
            assert!(!section.close());
        }
        assert!(!reader.is_open());
    }

    #[test]
    fn a_reader_that_fences_always_does() {
        let reader = leaked(true);
        let value = 0u8;
        assert!(!reader.is_open());
        let (_, section) = reader.open(&AtomicPtr::new(ptr::from_ref(&value).cast_mut()), none);
        assert!(!ptr::eq(section.entry, &reader.entries[0]), "`open` does not fence");
        assert!(reader.is_open() && !section.close() && !reader.is_open());
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
        let (seen, _) = reader.open(&AtomicPtr::new(ptr::from_ref(&value).cast_mut()), none);
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
        let (_, section) = own.open(&source, none);
        assert!(!readers.unseen_by_all(Some(own), ptr::from_ref(&value).cast()));
        assert!(!section.close());
        readers.join();
        assert!(!readers.unseen_by_all(Some(own), ptr::from_ref(&value).cast()));
    }
}
