//! `PowerControl`: the registers with which a guest turns its machine off or resets it.

use vmm_core::{VmEvent, VmEvents};

use crate::BusDevice;

/// The sleep type of the state S5, soft-off, that this platform's `\_S5` object names.
pub const SOFT_OFF: u8 = 5;

/// The value that the reset register takes.
pub const RESET_VALUE: u8 = 1;

/// `SLP_EN`, bit 5 of the sleep control register, and `SLP_TYPx`, bits 4 to 2.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Three registers of a byte each: sleep control, sleep status and reset.
///
/// Soft-off is the only sleep state: there is nothing to wake from, so the status reads as zero.
pub struct PowerControl(VmEvents);

impl PowerControl {
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register.
    pub const RESET: u64 = 2;
    /// Length of the range in bytes.
    pub const LENGTH: u64 = 3;

    /// Registers that end the machine.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for PowerControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[byte] = data else { return };
        let sleep_type = byte.wrapping_shr(SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        if offset == Self::SLEEP_CONTROL && byte & SLEEP_ENABLE != 0 && sleep_type == SOFT_OFF {
            self.0.send(VmEvent::Shutdown("ACPI S5"));
        } else if offset == Self::RESET && byte == RESET_VALUE {
            self.0.send(VmEvent::Reset("ACPI reset register"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S5: u8 = SLEEP_ENABLE | SOFT_OFF << SLEEP_TYPE_SHIFT;

    fn after(offset: u64, data: &[u8]) -> Option<VmEvent> {
        let events = VmEvents::new().unwrap();
        PowerControl::new(events.clone()).write(offset, data);
        events.get().cloned()
    }

    #[test]
    fn fault_d1_only_an_enabled_soft_off_turns_the_machine_off() {
        assert_eq!(after(PowerControl::SLEEP_CONTROL, &[S5]), Some(VmEvent::Shutdown("ACPI S5")));
        for value in [S5 & !SLEEP_ENABLE, SLEEP_ENABLE, SLEEP_ENABLE | 3 << 2, 0] {
            assert_eq!(after(PowerControl::SLEEP_CONTROL, &[value]), None, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_in_the_reset_register_resets() {
        assert_eq!(after(PowerControl::RESET, &[1]), Some(VmEvent::Reset("ACPI reset register")));
        assert_eq!(after(PowerControl::RESET, &[0]), None);
        assert_eq!(after(PowerControl::SLEEP_STATUS, &[1]), None);
    }

    #[test]
    fn fault_b1_wide_and_empty_writes_do_nothing() {
        assert_eq!(after(PowerControl::SLEEP_CONTROL, &[S5, 0]), None);
        assert_eq!(after(PowerControl::RESET, &[1, 0]), None);
        assert_eq!(after(PowerControl::RESET, &[]), None);
    }

    #[test]
    fn every_register_reads_as_zero() {
        let device = PowerControl::new(VmEvents::new().unwrap());
        for offset in 0..PowerControl::LENGTH {
            let mut byte = [0xff];
            device.read(offset, &mut byte);
            assert_eq!(byte, [0]);
        }
    }
}
