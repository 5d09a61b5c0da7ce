//! Two ports for guest programs: 0xf4 ends the machine with a value, 0xe9 prints a byte.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vmm_core::{VmEvent, VmEvents};

use crate::BusDevice;

/// Ends the machine with the value written (1, 2 or 4 bytes, little-endian).
pub struct DebugExit(VmEvents);

impl DebugExit {
    /// A port that ends the machine.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        self.0.send(VmEvent::DebugExit(u32::from_le_bytes(value)));
    }
}

/// The debug console of Bochs and QEMU: bytes written go to the console, reading gives 0xe9 as a sign of presence.
pub struct DebugConsole(Mutex<Box<dyn Write + Send>>);

impl DebugConsole {
    /// A console whose output goes to `output`, which never blocks.
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(output))
    }
}

impl BusDevice for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xe9);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        // Output that has nowhere to go is counted by the sink.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_exit_value_is_little_endian_of_any_width() {
        for (data, value) in [(&[3u8][..], 3), (&[1, 2][..], 0x201), (&[0, 1, 0, 0][..], 0x100)] {
            let events = VmEvents::new().unwrap();
            DebugExit::new(events.clone()).write(0, data);
            assert_eq!(events.get(), Some(&VmEvent::DebugExit(value)));
        }
    }

    #[test]
    fn the_debug_console_says_that_it_is_there() {
        let mut byte = [0];
        DebugConsole::new(Box::new(std::io::sink())).read(0, &mut byte);
        assert_eq!(byte, [0xe9]);
    }
}
