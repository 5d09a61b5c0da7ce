//! `ModelCell`: `Published` as loom models of other crates need it.
//!
//! A published cell has its readers in a static and finds the thread's own in a thread-local; a model makes everything
//! anew for each execution. So this one has readers of its own, the real ones, and each thread says which it is. What is
//! left out is what `Published` does to values; a model wants to see when they are destroyed.

use crate::barrier::Barrier;
use crate::grace::{Reader, Readers};
use crate::sync::{AtomicPtr, Ordering};

/// A cell that publishes one value of several. See the module documentation.
#[derive(Debug)]
pub struct ModelCell<T> {
    readers: Readers,
    current: AtomicPtr<T>,
    values: Box<[T]>,
}

/// A thread that reads.
#[derive(Clone, Copy, Debug)]
pub struct ModelReader(&'static Reader);

/// A value that was replaced.
#[derive(Debug)]
pub struct Replaced(*const ());

impl<T> ModelCell<T> {
    /// Publishes the first of `values`.
    ///
    /// # Panics
    /// There is none.
    pub fn new(values: impl IntoIterator<Item = T>) -> Self {
        let values: Box<[T]> = values.into_iter().collect();
        let current = AtomicPtr::new(address(&values[0]));
        // loom has no barrier for others: readers fence.
        Self { readers: Readers::new(Barrier::new()), current, values }
    }

    /// A reader for one thread.
    pub fn join(&self) -> ModelReader {
        ModelReader(self.readers.join())
    }

    /// What `read` makes of the value as it is now, in a read section.
    pub fn read<R>(&self, reader: ModelReader, read: impl FnOnce(&T) -> R) -> R {
        let (value, section) = reader.0.open(&self.current, || unreachable!("one section is open at a time"));
        let value = self.values.iter().find(|known| std::ptr::eq(address(*known), value));
        let result = value.map(read);
        if section.close() {
            self.readers.wake(reader.0);
        }
        result.unwrap_or_else(|| unreachable!("only values of the cell are published"))
    }

    /// Publishes value number `number`; returns the one before it.
    ///
    /// # Panics
    /// There is no such value.
    pub fn publish(&self, number: usize) -> Replaced {
        Replaced(self.current.swap(address(&self.values[number]), Ordering::SeqCst).cast_const().cast())
    }

    /// Returns when nobody reads `replaced`.
    pub fn wait(&self, replaced: &Replaced) {
        self.readers.wait_unseen(std::iter::once(replaced.0));
    }
}

fn address<T>(value: &T) -> *mut T {
    std::ptr::from_ref(value).cast_mut()
}
