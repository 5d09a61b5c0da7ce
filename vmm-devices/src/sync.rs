//! The synchronisation primitives of this crate's protocols: the standard library's, or loom's when a model is checked.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{Ordering, fence};

/// Locks `mutex`; a panic of an earlier holder does not make its data unusable, since every holder that uses this leaves it
/// consistent at each step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
