//! `Bus`: which device answers at which address, for port I/O and for MMIO alike.
//!
//! The table is a [`Published`] cell: an access takes no lock, changes are made while vCPUs run. No lock of the bus is
//! held while a device runs.
//!
//! A change is made in the table at once; what was replaced may still be in use until [`Retired::wait`] returns. A handler,
//! which is inside an access, cannot wait: it posts what it wants to change to the [`Reconfigure`](crate::Reconfigure)
//! thread.

mod device;
mod ranges;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_core::{Deferred, LogLimit, Published, Retired};

pub(crate) use device::both;
pub use device::{BusDevice, BusDeviceMut};
use ranges::Range;
pub use ranges::{BusError, Ranges};

/// One address space with devices in it.
pub struct Bus {
    name: &'static str,
    ranges: Published<Ranges>,
    unclaimed: AtomicU64,
    unclaimed_log: LogLimit,
}

impl Bus {
    /// An empty bus; `name` is for the log.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ranges: Published::new(Ranges::default()),
            unclaimed: AtomicU64::new(0),
            unclaimed_log: LogLimit::default(),
        }
    }

    /// Lets `device` answer at `length` addresses from `start`. Accesses that begin after the return reach it.
    ///
    /// The old table keeps the devices that it names until some time after its last reader. Who may take one of them, or the
    /// machine, apart soon takes [`insert_retiring`](Self::insert_retiring).
    pub fn insert(
        &self,
        start: u64,
        length: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        self.insert_retiring(start, length, name, device).map(drop)
    }

    /// As [`insert`](Self::insert). After [`Retired::wait`] nothing but the new table keeps the devices.
    pub fn insert_retiring(
        &self,
        start: u64,
        length: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<Retired<Ranges>, BusError> {
        let range = Range::new(start, length, name, device)?;
        self.ranges.update(|ranges| ranges.with(range, name))
    }

    /// Takes the device that starts at `start` off the bus. After [`Retired::wait`] no call into it is running and
    /// none will come.
    pub fn remove(&self, start: u64) -> Result<Retired<Ranges>, BusError> {
        self.ranges.update(|ranges| Ok(ranges.without(start)?.0))
    }

    /// Lets the device that starts at `from` answer at `to` instead, at as many addresses. There is no moment in which it
    /// answers at both or at none. After [`Retired::wait`] no call that came by the old address is running.
    pub fn move_range(&self, from: u64, to: u64) -> Result<Retired<Ranges>, BusError> {
        self.ranges.update(|ranges| ranges.moved(from, to))
    }

    /// Puts `device` in the place of the one that starts at `start`, at the same addresses. After [`Retired::wait`] no
    /// call into the old one is running and none will come.
    pub fn replace(
        &self,
        start: u64,
        name: &'static str,
        device: Arc<dyn BusDevice>,
    ) -> Result<Retired<Ranges>, BusError> {
        self.ranges.update(|ranges| ranges.replaced(start, name, device))
    }

    /// One guest read of `data.len() / size` elements, all at the same `address`. Where no device is, the elements
    /// read as all ones.
    #[inline]
    pub fn read(&self, address: u64, size: usize, data: &mut [u8]) {
        let ranges = self.ranges.load();
        data.fill(0xff);
        match ranges.find_whole(address, size) {
            Some((range, offset)) if data.len() == size => range.device.read(offset, data),
            Some((range, offset)) => range.device.read_elements(offset, size, data),
            None => self.read_apart(&ranges, address, size, data),
        }
    }

    /// One guest write of `data.len() / size` elements, all to the same `address`. Where no device is, they are lost.
    /// `Some`: the access ends when the device says so.
    #[inline]
    pub fn write(&self, address: u64, size: usize, data: &[u8]) -> Option<Deferred> {
        let ranges = self.ranges.load();
        match ranges.find_whole(address, size) {
            Some((range, offset)) if data.len() == size => range.device.write_deferred(offset, data),
            Some((range, offset)) => range.device.write_elements(offset, size, data),
            None => self.write_apart(&ranges, address, size, data),
        }
    }

    /// A read whose elements are not inside one range.
    #[cold]
    #[inline(never)]
    fn read_apart(&self, ranges: &Ranges, address: u64, size: usize, data: &mut [u8]) {
        for element in data.chunks_exact_mut(size.max(1)) {
            self.read_pieces(ranges, address, element);
        }
    }

    /// A write whose elements are not inside one range.
    #[cold]
    #[inline(never)]
    fn write_apart(&self, ranges: &Ranges, address: u64, size: usize, data: &[u8]) -> Option<Deferred> {
        let elements = data.chunks_exact(size.max(1));
        elements.map(|element| self.write_pieces(ranges, address, element)).fold(None, both)
    }

    /// An element of a read that is not inside one range: each piece goes where it belongs, holes stay all ones.
    fn read_pieces(&self, ranges: &Ranges, mut address: u64, mut data: &mut [u8]) {
        while !data.is_empty() {
            let (range, length) = ranges.piece(address, data.len());
            let Some((head, tail)) = data.split_at_mut_checked(length) else {
                return;
            };
            match range {
                Some((range, offset)) => range.device.read(offset, head),
                None => self.note_unclaimed("read", address, length),
            }
            data = tail;
            address = address.wrapping_add(length as u64);
        }
    }

    /// The same of a write: what falls into holes is lost.
    fn write_pieces(&self, ranges: &Ranges, mut address: u64, mut data: &[u8]) -> Option<Deferred> {
        let mut deferred = None;
        while !data.is_empty() {
            let (range, length) = ranges.piece(address, data.len());
            let Some((head, tail)) = data.split_at_checked(length) else {
                break;
            };
            match range {
                Some((range, offset)) => {
                    deferred = both(deferred, range.device.write_deferred(offset, head));
                }
                None => self.note_unclaimed("write", address, length),
            }
            data = tail;
            address = address.wrapping_add(length as u64);
        }
        deferred
    }

    /// Whether no device answers at any of `length` addresses from `start` now.
    #[must_use]
    pub fn is_free(&self, start: u64, length: u64) -> bool {
        self.ranges.load().is_free(start, length)
    }

    /// How many accesses, or pieces of one, have fallen into holes.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn note_unclaimed(&self, access: &str, address: u64, length: usize) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Some(left_out) = self.unclaimed_log.permit()
        {
            let bus = self.name;
            tracing::debug!(
                bus,
                access,
                address = format_args!("{address:#x}"),
                length,
                left_out,
                "no such address"
            );
        }
    }
}

#[cfg(test)]
mod tests;
