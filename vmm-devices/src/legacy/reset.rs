//! The two old ways to reset a PC: the keyboard controller's pulse and port 0xcf9.

use std::sync::{Mutex, PoisonError};

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

/// The command port of an i8042 keyboard controller without keyboard, 0x64: command 0xfe pulses the reset line.
///
/// Ports 0x61 to 0x63, between its two, belong to the PC speaker and the i8254 timer.
pub struct I8042(Mutex<I8042Device<ResetLine>>);

/// Offset of the command register in vm-superio's device.
const COMMAND: u8 = 4;

impl I8042 {
    /// A controller whose reset line ends the machine.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(Mutex::new(I8042Device::new(ResetLine(events))))
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            *byte = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(COMMAND);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let &[byte] = data {
            let Ok(()) = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(COMMAND, byte);
        }
    }
}

/// The data port of the keyboard controller, 0x60: there is no keyboard, so it reads as zero.
pub struct I8042Data;

impl BusDevice for I8042Data {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// The reset control register of Intel chipsets, port 0xcf9: writing bit 2 resets the machine.
///
/// It sits in the middle of PCI's `CONFIG_ADDRESS`, the four ports from 0xcf8, and takes all of them: a wide write there
/// selects a PCI register (of a bus that does not exist) and resets nothing.
pub struct ResetControl(VmEvents);

impl ResetControl {
    /// First port and number of ports.
    pub const PORTS: (u64, u64) = (0xcf8, 4);
    const REGISTER: u64 = 1;

    /// A register that ends the machine.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for ResetControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // All else reads as all ones: nothing is there.
        if let (Self::REGISTER, [byte]) = (offset, data) {
            *byte = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const RESET_CPU: u8 = 1 << 2;
        if matches!((offset, data), (Self::REGISTER, [byte]) if byte & RESET_CPU != 0) {
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
        for value in [0xd1, 0xff] {
            device.write(0, &[value]);
            assert_eq!(events.get(), None);
        }
        device.write(0, &[0xfe, 0]);
        I8042Data.write(0, &[0xfe]);
        assert_eq!(events.get(), None);
        device.write(0, &[0xfe]);
        assert_eq!(events.get(), Some(&VmEvent::Reset("i8042")));
    }

    #[test]
    fn the_status_of_the_i8042_says_that_commands_may_be_written() {
        let mut status = [0xff];
        I8042::new(VmEvents::new().unwrap()).read(0, &mut status);
        assert_eq!(status[0] & 2, 0);
    }

    #[test]
    fn port_cf9_resets_on_bit_2_only() {
        let events = VmEvents::new().unwrap();
        let device = ResetControl::new(events.clone());
        device.write(1, &[0x02]);
        // CONFIG_ADDRESS of function 4, which has bit 2 set in its second byte.
        device.write(0, &0x8000_0400u32.to_le_bytes());
        device.write(1, &[0x06, 0]);
        assert_eq!(events.get(), None);
        device.write(1, &[0x06]);
        assert_eq!(events.get(), Some(&VmEvent::Reset("port 0xcf9")));
    }
}
