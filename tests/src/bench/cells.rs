//! Cells that a table can be published in, each around the same search: what the choice of a cell costs.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering, fence};
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

/// A published pointer that readers announce by a store and a fence of their own: [`Published`] where there is no
/// membarrier. The pointer is not followed, the table is always the same.
pub struct Fenced<'a> {
    table: &'a Plain,
    current: AtomicU64,
}

#[repr(align(128))]
struct Announced(AtomicU64);

thread_local! {
    static ANNOUNCED: Cell<Option<&'static Announced>> = const { Cell::new(None) };
}

impl<'a> Fenced<'a> {
    /// A cell with `table` in it.
    #[must_use]
    pub fn new(table: &'a Plain) -> Self {
        Self { table, current: AtomicU64::new(1) }
    }
}

impl Dispatch for Fenced<'_> {
    #[inline]
    fn write(&self, address: u64, data: &[u8; 4]) {
        let announced = ANNOUNCED.get().unwrap_or_else(|| {
            let new: &'static Announced = Box::leak(Box::new(Announced(AtomicU64::new(0))));
            ANNOUNCED.set(Some(new));
            new
        });
        let mut value = self.current.load(Ordering::Acquire);
        loop {
            announced.0.store(value, Ordering::Release);
            fence(Ordering::SeqCst);
            let now = self.current.load(Ordering::Acquire);
            if now == value {
                break;
            }
            value = now;
        }
        self.table.write(address, data);
        announced.0.store(0, Ordering::Release);
    }
}
