//! `Exits`: where the exits of the vCPUs meet the buses.

use std::sync::Arc;

use vmm_core::Deferred;
use vmm_core::irq::IoapicPins;
use vmm_devices::Bus;
use vmm_vcpu::ExitHandler;

/// The two address spaces of a machine.
pub(super) struct Exits {
    pub(super) pio: Bus,
    /// Shared with those whose place on it changes.
    pub(super) mmio: Arc<Bus>,
    /// The pins of an I/O APIC in user space.
    pub(super) ioapic: Option<IoapicPins>,
}

impl Exits {
    pub(super) fn new() -> Self {
        Self { pio: Bus::new("pio"), mmio: Arc::new(Bus::new("mmio")), ioapic: None }
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

    #[inline]
    fn end_of_interrupt(&self, vector: u8) {
        if let Some(pins) = &self.ioapic {
            pins.end_of_interrupt(vector);
        }
    }
}
