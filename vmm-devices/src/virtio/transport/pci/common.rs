//! `Common`: the registers of the common configuration (virtio 1.3, section 4.1.4.3).
//!
//! Each is accessed with its own width, those of 64 bits as two of 32 (section 4.1.3.1). Any other access reads as zero and
//! changes nothing.

use super::interrupts::PciInterrupts;
use crate::virtio::transport::control::Control;
use crate::virtio::transport::state::{QueueArea, QueueRegisters, Registers};

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DEVICE_END: u64 = 0x38;
const QUEUE_RESET: u64 = 0x3a;

/// The registers of one device.
pub(super) struct Common<'a> {
    control: &'a Control,
    interrupts: &'a PciInterrupts,
}

impl<'a> Common<'a> {
    pub(super) fn new(control: &'a Control, interrupts: &'a PciInterrupts) -> Self {
        Self { control, interrupts }
    }

    /// The driver reads. `data` is all zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        match data {
            [byte] => {
                *byte = match offset {
                    DEVICE_STATUS => self.control.status(),
                    // It wraps, as it may: a driver compares.
                    CONFIG_GENERATION => (self.control.config_generation() & 0xff) as u8,
                    _ => 0,
                }
            }
            [_, _] => data.copy_from_slice(&self.load16(offset).to_le_bytes()),
            [_, _, _, _] => data.copy_from_slice(&self.load32(offset).to_le_bytes()),
            _ => {}
        }
    }

    /// The driver writes.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (DEVICE_STATUS, &[value]) => self.control.set_status(value),
            (_, &[low, high]) => self.store16(offset, u16::from_le_bytes([low, high])),
            (_, &[b0, b1, b2, b3]) => self.store32(offset, u32::from_le_bytes([b0, b1, b2, b3])),
            _ => self.control.with_registers(Registers::ignore),
        }
    }

    fn load16(&self, offset: u64) -> u16 {
        let selected = || self.control.with_registers(|registers| registers.queue_index());
        match offset {
            CONFIG_MSIX_VECTOR => self.interrupts.config_vector(),
            NUM_QUEUES => {
                let queues = self.control.with_registers(|registers| registers.queue_count());
                u16::try_from(queues).unwrap_or(u16::MAX)
            }
            // Written with 16 bits.
            QUEUE_SELECT => u16::try_from(selected()).unwrap_or(u16::MAX),
            QUEUE_SIZE => self.of_queue(QueueRegisters::size),
            QUEUE_MSIX_VECTOR => self.interrupts.queue_vector(selected()),
            QUEUE_ENABLE => self.of_queue(|queue| queue.is_enabled().into()),
            // The notification addresses are in the order of the queues.
            QUEUE_NOTIFY_OFF => {
                let index = u16::try_from(selected()).unwrap_or(0);
                self.of_queue(|_| index)
            }
            QUEUE_RESET => self.of_queue(|queue| queue.is_resetting().into()),
            _ => 0,
        }
    }

    fn load32(&self, offset: u64) -> u32 {
        self.control.with_registers(|registers| match offset {
            DEVICE_FEATURE_SELECT => registers.offered_page(),
            DEVICE_FEATURE => registers.offered(),
            DRIVER_FEATURE_SELECT => registers.accepted_page(),
            DRIVER_FEATURE => registers.accepted_selected(),
            _ => {
                let Some(((area, is_upper), queue)) = area(offset).zip(registers.queue()) else { return 0 };
                let address = queue.address(area);
                if is_upper { (address >> 32) as u32 } else { (address & 0xffff_ffff) as u32 }
            }
        })
    }

    fn store16(&self, offset: u64, value: u16) {
        match offset {
            CONFIG_MSIX_VECTOR => self.interrupts.set_config_vector(value),
            QUEUE_SELECT => self.control.with_registers(|registers| registers.select_queue(value.into())),
            QUEUE_SIZE => self.control.with_registers(|registers| registers.set_queue_size(value.into())),
            QUEUE_MSIX_VECTOR => {
                let selected = self.control.with_registers(|registers| registers.queue_index());
                self.interrupts.set_queue_vector(selected, value);
                self.control.interrupt_moved(usize::try_from(selected).unwrap_or(usize::MAX));
            }
            QUEUE_ENABLE if value == 1 => self.control.enable_queue(),
            QUEUE_RESET if value == 1 => self.control.reset_queue(),
            _ => self.control.with_registers(Registers::ignore),
        }
    }

    fn store32(&self, offset: u64, value: u32) {
        self.control.with_registers(|registers| match offset {
            DEVICE_FEATURE_SELECT => registers.select_offered(value),
            DRIVER_FEATURE_SELECT => registers.select_accepted(value),
            DRIVER_FEATURE => registers.accept(value),
            _ => match area(offset) {
                Some((area, is_upper)) => registers.set_queue_address(area, is_upper, value),
                None => registers.ignore(),
            },
        });
    }

    fn of_queue(&self, f: impl FnOnce(&QueueRegisters) -> u16) -> u16 {
        self.control.with_registers(|registers| registers.queue().map_or(0, f))
    }
}

/// Which half of the address of which area is at `offset`.
fn area(offset: u64) -> Option<(QueueArea, bool)> {
    let is_there = (QUEUE_DESC..QUEUE_DEVICE_END).contains(&offset) && offset.is_multiple_of(4);
    let area = match offset & !7 {
        QUEUE_DESC => QueueArea::Descriptors,
        0x28 => QueueArea::Available,
        _ => QueueArea::Used,
    };
    is_there.then_some((area, offset & 4 != 0))
}
