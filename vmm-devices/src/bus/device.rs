//! `BusDevice`: a device as a bus sees it.

use std::slice;
use std::sync::{Mutex, PoisonError};

use vmm_core::Deferred;

/// A device as the bus sees it. `offset` counts from the start of the device's range; offset and length stay inside
/// it. Called by several vCPUs at a time.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads. `data` is all ones before the call.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes.
    fn write(&self, offset: u64, data: &[u8]);

    /// As [`write`](Self::write), which a device leaves to this method for accesses that would have to wait. `Some`: the
    /// access ends when the device says so, and the vCPU that made it sleeps until then.
    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        self.write(offset, data);
        None
    }

    /// A string read: each element of `size` bytes is a [`read`](Self::read) at the same `offset`.
    ///
    /// Not for devices to change. It is a method so that a string access takes one dynamic call and not one an
    /// element.
    fn read_elements(&self, offset: u64, size: usize, data: &mut [u8]) {
        if size <= 1 {
            // Most string accesses, and a length that the compiler knows.
            data.iter_mut().for_each(|byte| self.read(offset, slice::from_mut(byte)));
        } else {
            data.chunks_exact_mut(size).for_each(|element| self.read(offset, element));
        }
    }

    /// A string write: each element of `size` bytes is a [`write`](Self::write) at the same `offset`. As
    /// [`read_elements`](Self::read_elements).
    fn write_elements(&self, offset: u64, size: usize, data: &[u8]) -> Option<Deferred> {
        let elements = data.chunks_exact(size.max(1)).map(|element| self.write_deferred(offset, element));
        elements.fold(None, both)
    }
}

/// A device that wants a lock around each access; see the [`BusDevice`] of its `Mutex`.
pub trait BusDeviceMut: Send {
    /// As [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// As [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<D: BusDeviceMut> BusDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

/// What is deferred of an access of two parts.
pub(crate) fn both(one: Option<Deferred>, other: Option<Deferred>) -> Option<Deferred> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.and(other)),
        (one, other) => one.or(other),
    }
}
