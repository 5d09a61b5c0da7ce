//! `Buses`: two buses with the device under measurement on both, among sixteen ranges each unless told otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_core::Deferred;
use vmm_devices::{Bus, BusDevice, BusError};
use vmm_vcpu::ExitHandler;

use crate::bench::raw_exits::ExitKind;

/// Where the guests of the exit benchmark knock; the same in `guests/guest.inc`.
pub const BENCH_PORT: u16 = 0x580;
/// As [`BENCH_PORT`], for memory accesses.
pub const BENCH_MMIO: u64 = 0xd000_0000;

/// Ranges of a bus, and how many of them lie below the measured one.
pub const RANGES: u64 = 16;
/// See [`RANGES`].
pub const BELOW: u64 = 8;

/// Addresses of a port range and of an MMIO range, and from one start to the next.
const PORTS: (u64, u64) = (8, 0x10);
const MMIO: (u64, u64) = (0x1000, 0x1_0000);

/// What vmm-cli makes of its two buses, with other devices on them.
pub struct Buses {
    pio: Bus,
    mmio: Bus,
}

impl Buses {
    /// Puts `device` at [`BENCH_PORT`] and [`BENCH_MMIO`], and devices nobody calls around it.
    ///
    /// # Errors
    ///
    /// None for the addresses above.
    pub fn new(device: &Arc<dyn BusDevice>) -> Result<Self, BusError> {
        Self::with(RANGES, device)
    }

    /// The same with another number of ranges on each bus, [`BELOW`] of them below the measured one.
    ///
    /// # Errors
    ///
    /// More than there are addresses.
    pub fn with(ranges: u64, device: &Arc<dyn BusDevice>) -> Result<Self, BusError> {
        let buses = Self { pio: Bus::new("pio"), mmio: Bus::new("mmio") };
        fill(&buses.pio, BENCH_PORT.into(), PORTS, ranges, device)?;
        fill(&buses.mmio, BENCH_MMIO, MMIO, ranges, device)?;
        Ok(buses)
    }

    /// The bus of the exits of `kind`, and an address on it where no device is.
    #[must_use]
    pub fn free_place(&self, kind: ExitKind) -> (&Bus, u64) {
        match kind {
            ExitKind::PortWrite | ExitKind::PortRead | ExitKind::StringIn => (&self.pio, 0x10),
            ExitKind::MmioWrite | ExitKind::MmioRead => (&self.mmio, 0x10_0000),
        }
    }
}

/// Fills `bus` with ranges of `length` addresses, `stride` apart, of which `device` has the one at `start`.
fn fill(
    bus: &Bus,
    start: u64,
    (length, stride): (u64, u64),
    ranges: u64,
    device: &Arc<dyn BusDevice>,
) -> Result<(), BusError> {
    let first = start - BELOW * stride;
    for index in 0..ranges {
        let (name, device) = match index {
            BELOW => ("measured", Arc::clone(device)),
            _ => ("other", Arc::new(Status::default()) as Arc<dyn BusDevice>),
        };
        bus.insert(first + index * stride, length, name, device)?;
    }
    Ok(())
}

impl ExitHandler for Buses {
    #[inline]
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        self.pio.read(port.into(), size, data);
    }

    #[inline]
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        self.pio.write(port.into(), size, data)
    }

    #[inline]
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.mmio.read(address, data.len(), data);
    }

    #[inline]
    fn mmio_write(&self, address: u64, data: &[u8]) -> Option<Deferred> {
        self.mmio.write(address, data.len(), data)
    }
}

/// The measured device: a status register of one byte. What is written to it is lost, so what is measured is the way
/// to a device and not the device.
///
/// Each element of a string read looks at the status again, as it could have changed; the compiler cannot make one fill
/// of them.
#[derive(Debug)]
pub struct Status(AtomicU8);

impl Status {
    /// What it reads as.
    pub const BYTE: u8 = 0x5a;
}

impl Default for Status {
    fn default() -> Self {
        Self(AtomicU8::new(Self::BYTE))
    }
}

impl BusDevice for Status {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let status = self.0.load(Ordering::Relaxed);
        match data {
            [byte] => *byte = status,
            _ => data.fill(status),
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Remembers how it was called.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().unwrap().push((offset, data.len()));
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.len()));
        }
    }

    #[test]
    fn the_measured_device_is_called_where_the_guests_knock_and_nowhere_else() {
        let device = Arc::new(Recorder::default());
        let buses = Buses::new(&(Arc::clone(&device) as Arc<dyn BusDevice>)).unwrap();
        let mut data = [0; 4];
        buses.port_read(BENCH_PORT, 1, &mut data[..2]);
        buses.port_write(BENCH_PORT, 1, &[0]);
        buses.mmio_read(BENCH_MMIO, &mut data);
        buses.mmio_write(BENCH_MMIO, &data);
        assert_eq!(*device.0.lock().unwrap(), [(0, 1), (0, 1), (0, 1), (0, 4), (0, 4)]);
        buses.port_read(BENCH_PORT + 0x10, 1, &mut data);
        assert_eq!((data, device.0.lock().unwrap().len()), ([Status::BYTE; 4], 5));
    }

    #[test]
    fn both_buses_have_all_their_ranges() {
        let buses = Buses::new(&(Arc::new(Status::default()) as Arc<dyn BusDevice>)).unwrap();
        for index in 0..RANGES {
            assert!(buses.pio.remove(u64::from(BENCH_PORT) - 0x80 + index * 0x10).is_ok());
            assert!(buses.mmio.remove(BENCH_MMIO - 0x8_0000 + index * 0x1_0000).is_ok());
        }
    }
}
