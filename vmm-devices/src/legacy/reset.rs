//! The two old ways to reset a PC: the keyboard controller's pulse and port 0xcf9.

use std::sync::Mutex;

use vm_superio::{I8042Device, Trigger};
use vmm_core::{VmEvent, VmEvents};

use crate::BusDevice;

/// Sends the reset of an i8042.
struct ResetLine(VmEvents);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.send(VmEvent::Reset("i8042"));
        Ok(())
    }
}

/// An i8042 keyboard controller without keyboard: command 0xfe pulses the reset line. Sits at ports 0x60 to 0x64.
pub struct I8042(Mutex<I8042Device<ResetLine>>);

impl I8042 {
    /// A controller whose reset line ends the machine.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(events))))
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let Ok(()) = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).write(offset, byte);
        }
    }
}

/// The reset control register of Intel chipsets, port 0xcf9: writing bit 2 resets the machine.
pub struct ResetControl(VmEvents);

impl ResetControl {
    /// A register that ends the machine.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        const RESET_CPU: u8 = 1 << 2;
        if matches!(data, [byte] if byte & RESET_CPU != 0) {
            self.0.send(VmEvent::Reset("port 0xcf9"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_of_the_i8042_resets() {
        let events = VmEvents::new().unwrap();
        let device = I8042::new(events.clone());
        for (offset, value) in [(0u64, 0xfe), (4, 0xd1), (4, 0xff)] {
            device.write(offset, &[value]);
            assert_eq!(events.get(), None);
        }
        device.write(4, &[0xfe, 0]);
        assert_eq!(events.get(), None);
        device.write(4, &[0xfe]);
        assert_eq!(events.get(), Some(&VmEvent::Reset("i8042")));
    }

    #[test]
    fn the_status_of_the_i8042_says_that_commands_may_be_written() {
        let mut status = [0xff];
        I8042::new(VmEvents::new().unwrap()).read(4, &mut status);
        assert_eq!(status[0] & 2, 0);
    }

    #[test]
    fn port_cf9_resets_on_bit_2_only() {
        let events = VmEvents::new().unwrap();
        let device = ResetControl::new(events.clone());
        device.write(0, &[0x02]);
        assert_eq!(events.get(), None);
        device.write(0, &[0x06]);
        assert_eq!(events.get(), Some(&VmEvent::Reset("port 0xcf9")));
    }
}
