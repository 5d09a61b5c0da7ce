//! `Exits`: where the exits of the vCPUs meet the buses.

use vmm_core::Deferred;
use vmm_devices::Bus;
use vmm_vcpu::ExitHandler;

/// The two address spaces of a machine.
pub(super) struct Exits {
    pub(super) pio: Bus,
    pub(super) mmio: Bus,
}

impl Exits {
    pub(super) fn new() -> Self {
        Self { pio: Bus::new("pio"), mmio: Bus::new("mmio") }
    }
}

impl ExitHandler for Exits {
    #[inline]
    fn port_read(&self, port: u16, size: usize, data: &mut [u8]) {
        self.pio.read(u64::from(port), size, data);
    }

    #[inline]
    fn port_write(&self, port: u16, size: usize, data: &[u8]) -> Option<Deferred> {
        self.pio.write(u64::from(port), size, data)
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
