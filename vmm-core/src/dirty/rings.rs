//! `DirtyRings`: the rings of all vCPUs of a VM, as their vCPUs hand them over, and who reads them.

use std::fmt;
use std::sync::Weak;

use super::ring::{DirtyRing, RingItem, RingMapping};
use crate::IoctlError;
use crate::sync::{Mutex, lock};

/// Whoever reads the rings, and remembers what was in them.
pub trait RingCollector: Send + Sync {
    /// Empties all rings.
    ///
    /// # Errors
    /// KVM does not reset them.
    fn collect(&self) -> Result<(), IoctlError>;
}

/// A vCPU cannot go on: its ring is full.
#[derive(Debug, thiserror::Error)]
pub enum RingFullError {
    /// Nobody is there who would read it.
    #[error("a dirty ring is full, and nobody reads it")]
    NoCollector,
    /// It cannot be emptied.
    #[error("a dirty ring is full, and cannot be emptied")]
    Collect(#[from] IoctlError),
    /// KVM has overrun it, or holds it for full though nothing is in it.
    #[error("KVM has named more pages than a dirty ring has entries: use a bitmap on this host")]
    Overrun,
}

/// See the module documentation. Lock order: no lock is held while the collector is called; `rings` is innermost.
pub struct DirtyRings {
    rings: Mutex<Vec<DirtyRing>>,
    collector: Mutex<Option<Weak<dyn RingCollector>>>,
}

impl Default for DirtyRings {
    fn default() -> Self {
        Self { rings: Mutex::new(Vec::new()), collector: Mutex::new(None) }
    }
}

impl DirtyRings {
    /// Takes over the ring of a vCPU that has been made; returns the number that it has here.
    pub fn add(&self, ring: Box<dyn RingMapping>) -> usize {
        let mut rings = lock(&self.rings);
        rings.push(DirtyRing::new(ring));
        rings.len() - 1
    }

    /// Says who reads the rings from now on.
    pub fn set_collector(&self, collector: Weak<dyn RingCollector>) {
        *lock(&self.collector) = Some(collector);
    }

    /// Reads what is in the rings. KVM has to be told to reset it before the pages are looked at: a write in between is not
    /// named again.
    pub fn take_all(&self, each: &mut dyn FnMut(RingItem)) {
        lock(&self.rings).iter_mut().for_each(|ring| ring.take_all(each));
    }

    /// Has the rings emptied. To be called on the thread of a vCPU that has left the guest because its ring, of this number, is
    /// full.
    ///
    /// # Errors
    /// See [`RingFullError`]; the guest cannot be entered then.
    pub fn full(&self, number: usize) -> Result<(), RingFullError> {
        self.collect()?;
        let mut rings = lock(&self.rings);
        let may_go_on = rings.get_mut(number).is_some_and(DirtyRing::was_full);
        if may_go_on { Ok(()) } else { Err(RingFullError::Overrun) }
    }

    /// Has the rings emptied if the ring of this number has something in it. To be called on the thread of its vCPU when that has
    /// left the guest anyway.
    ///
    /// # Errors
    /// See [`RingFullError`]; nothing is lost then.
    pub fn reap(&self, number: usize) -> Result<(), RingFullError> {
        let is_empty = lock(&self.rings).get(number).is_none_or(DirtyRing::is_empty);
        match if is_empty { Ok(()) } else { self.collect() } {
            // It may never be full.
            Err(RingFullError::NoCollector) => Ok(()),
            result => result,
        }
    }

    fn collect(&self) -> Result<(), RingFullError> {
        let collector = lock(&self.collector).as_ref().and_then(Weak::upgrade);
        Ok(collector.ok_or(RingFullError::NoCollector)?.collect()?)
    }
}

impl fmt::Debug for DirtyRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyRings").field("rings", &lock(&self.rings).len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{RingEntry, RingPage};

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl RingCollector for Counting {
        fn collect(&self) -> Result<(), IoctlError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    struct One(Vec<RingEntry>);

    impl RingMapping for One {
        fn entries(&self) -> &[RingEntry] {
            &self.0
        }
    }

    #[test]
    fn a_ring_is_reaped_if_there_is_something_in_it() {
        let rings = DirtyRings::default();
        let collector = Arc::new(Counting::default());
        let weak: Weak<Counting> = Arc::downgrade(&collector);
        rings.set_collector(weak);
        let named = RingEntry::default();
        assert!(named.name(RingPage { slot: 0, page: 0 }));
        for (entry, expected) in [(RingEntry::default(), 0), (named, 1)] {
            let number = rings.add(Box::new(One(vec![entry])));
            rings.reap(number).unwrap();
            assert_eq!(collector.0.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn a_full_ring_that_nobody_reads_is_an_error() {
        let rings = DirtyRings::default();
        rings.add(Box::new(One(vec![RingEntry::default()])));
        assert!(matches!(rings.full(0), Err(RingFullError::NoCollector)));
        let collector = Arc::new(Counting::default());
        let weak: Weak<Counting> = Arc::downgrade(&collector);
        rings.set_collector(weak);
        rings.full(0).unwrap();
        assert_eq!(collector.0.load(Ordering::Relaxed), 1);
        drop(collector);
        assert!(matches!(rings.full(0), Err(RingFullError::NoCollector)));
    }
}
