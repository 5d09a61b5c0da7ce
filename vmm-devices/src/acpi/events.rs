//! `GenericEvents`: the register of the generic event device, which says why its interrupt came.

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_core::irq::IrqTrigger;

use crate::BusDevice;

/// The event bit of the power button.
pub const POWER_BUTTON: u8 = 1 << 0;

/// The event bit of PCI slots whose registers have news.
pub const PCI_HOTPLUG: u8 = 1 << 1;

/// One register of a byte: the events since it was last read. Reading clears it.
///
/// The `_EVT` method of the generic event device (HID `ACPI0013`) reads it and notifies a device for each bit.
pub struct GenericEvents {
    /// Pairs with itself: `raise` sets bits, a read takes them all. The interrupt that follows a set bit is what makes
    /// a guest look, and the eventfd orders the two.
    pending: AtomicU8,
    interrupt: IrqTrigger,
}

impl GenericEvents {
    /// Length of the range in bytes.
    pub const LENGTH: u64 = 1;

    /// A register without events, whose interrupt is `interrupt`.
    #[must_use]
    pub fn new(interrupt: IrqTrigger) -> Self {
        Self { pending: AtomicU8::new(0), interrupt }
    }

    /// Tells the guest of `events`, bits such as [`POWER_BUTTON`]. From any thread.
    pub fn raise(&self, events: u8) {
        self.pending.fetch_or(events, Ordering::AcqRel);
        self.interrupt.trigger();
    }
}

impl BusDevice for GenericEvents {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            *byte = self.pending.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &GenericEvents) -> u8 {
        let mut byte = [0xff];
        device.read(0, &mut byte);
        byte[0]
    }

    #[test]
    fn an_event_interrupts_and_is_read_once() {
        let interrupt = IrqTrigger::unconnected().unwrap();
        let device = GenericEvents::new(interrupt.clone());
        assert_eq!((read(&device), interrupt.signals()), (0, 0));
        device.raise(POWER_BUTTON);
        device.raise(POWER_BUTTON);
        assert_eq!(interrupt.signals(), 2);
        assert_eq!((read(&device), read(&device)), (POWER_BUTTON, 0));
    }

    #[test]
    fn fault_b1_a_wide_read_and_a_write_take_no_event() {
        let device = GenericEvents::new(IrqTrigger::unconnected().unwrap());
        device.raise(POWER_BUTTON);
        let mut word = [0xff; 2];
        device.read(0, &mut word);
        device.write(0, &[0xff]);
        assert_eq!((word, read(&device)), ([0, 0], POWER_BUTTON));
    }
}
