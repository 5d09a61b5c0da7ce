//! Cells that a table can be published in, each around the same search: what the choice of a cell costs.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::{ArcSwap, Cache};
use vmm_core::Published;

use crate::bench::dispatch::{Dispatch, Plain};

/// [`Published`], the cell of this project.
impl Dispatch for Published<Plain> {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        self.load().write(address, data);
    }
}

/// `ArcSwap::load`: a debt that is taken and paid back.
impl Dispatch for ArcSwap<Plain> {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        self.load().write(address, data);
    }
}

/// A mutex for as long as the access lasts.
impl Dispatch for Mutex<Plain> {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(address, data);
    }
}

/// A reader-writer lock for as long as the access lasts.
impl Dispatch for RwLock<Plain> {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        self.read().unwrap_or_else(PoisonError::into_inner).write(address, data);
    }
}

/// A share of the table in each thread, and one look whether it is still the published one.
///
/// It can be timed and not be used: a thread that sleeps keeps its share, so that nobody can wait for its end; and a reader
/// destroys a table.
pub struct Cached(Arc<ArcSwap<Plain>>);

type PlainCache = Cache<Arc<ArcSwap<Plain>>, Arc<Plain>>;

impl Cached {
    /// A cell with `table` in it.
    #[must_use]
    pub fn new(table: Plain) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(table)))
    }
}

thread_local! {
    static CACHE: RefCell<Option<PlainCache>> = const { RefCell::new(None) };
}

impl Dispatch for Cached {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        CACHE.with_borrow_mut(|cache| {
            let cache = cache.get_or_insert_with(|| Cache::new(Arc::clone(&self.0)));
            cache.load().write(address, data);
        });
    }
}

/// A published table that readers announce by a store and a fence of their own: [`Published`] where there is no membarrier.
///
/// It stands for a pointer, and is the place of the table among several, so that the way to the table leads through what was
/// read. It is always the same.
pub struct Fenced {
    tables: Vec<Plain>,
    current: AtomicUsize,
}

#[repr(align(128))]
struct Announced(AtomicUsize);

/// Nothing is announced.
const NONE: usize = usize::MAX;

thread_local! {
    static ANNOUNCED: Cell<Option<&'static Announced>> = const { Cell::new(None) };
}

impl Fenced {
    /// A cell with `table` in it.
    #[must_use]
    pub fn new(table: Plain) -> Self {
        Self { tables: vec![table], current: AtomicUsize::new(0) }
    }
}

impl Dispatch for Fenced {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        let announced = ANNOUNCED.get().unwrap_or_else(|| {
            let new: &'static Announced = Box::leak(Box::new(Announced(AtomicUsize::new(NONE))));
            ANNOUNCED.set(Some(new));
            new
        });
        let mut place = self.current.load(Ordering::Acquire);
        loop {
            announced.0.store(place, Ordering::Release);
            fence(Ordering::SeqCst);
            let now = self.current.load(Ordering::Acquire);
            if now == place {
                break;
            }
            place = now;
        }
        if let Some(table) = self.tables.get(place) {
            table.write(address, data);
        }
        announced.0.store(NONE, Ordering::Release);
    }
}
