//! `Pvpanic`: the register with which a guest kernel says that it has panicked.
//!
//! QEMU `docs/specs/pvpanic.rst`, the MMIO form (ACPI HID `QEMU0001`): a byte whose bits are the events that the device
//! takes, when it is read, and the events that have happened, when it is written.

use vmm_core::{VmEvent, VmEvents};

use crate::BusDevice;

/// The guest has panicked, and is dead.
const PANICKED: u8 = 1 << 0;
/// The guest has panicked and goes on with a kernel that saves a crash dump.
const CRASH_LOADED: u8 = 1 << 1;

/// The device.
pub struct Pvpanic(VmEvents);

impl Pvpanic {
    /// Length of the range in bytes; the register is the first.
    pub const LENGTH: u64 = 2;

    /// A device that ends the machine of a guest that has panicked.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(events)
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, [byte, ..]) = (offset, data) {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, [events, ..]) = (offset, data) else { return };
        if events & PANICKED != 0 {
            self.0.send(VmEvent::GuestCrash("its kernel has panicked, and said so through pvpanic".into()));
        } else if events & CRASH_LOADED != 0 {
            tracing::warn!("the guest's kernel has panicked and saves a crash dump");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_says_which_events_it_takes() {
        let mut bytes = [0xff; 2];
        Pvpanic::new(VmEvents::new().unwrap()).read(0, &mut bytes);
        assert_eq!(bytes, [3, 0]);
    }

    #[test]
    fn a_panic_ends_the_machine_and_a_crash_dump_does_not() {
        let events = VmEvents::new().unwrap();
        let device = Pvpanic::new(events.clone());
        for (offset, value) in [(0, CRASH_LOADED), (0, 0), (0, 1 << 2), (1, PANICKED)] {
            device.write(offset, &[value]);
            assert_eq!(events.get(), None, "{value:#x} at {offset}");
        }
        device.write(0, &[PANICKED]);
        assert!(matches!(events.get(), Some(VmEvent::GuestCrash(report)) if report.contains("pvpanic")));
    }
}
