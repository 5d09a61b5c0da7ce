//! `VirtioMmio`: a device whose registers are in MMIO space (virtio 1.3, section 4.2), found through ACPI (`LNRO0005`).
//!
//! Registers of 4 bytes at multiples of 4, little-endian, below [`CONFIG`]; there any other access reads as zero and changes
//! nothing. From [`CONFIG`] on the device's configuration, in any width.
//!
//! The interrupt is edge-triggered, a line a device: an interrupt then is one write to an eventfd, and its end is no exit and
//! wakes no thread, as that of a level-triggered line is and does. Nothing is lost, as the driver acknowledges what it has read
//! before it looks at its queues, and what is used after that triggers again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use vmm_core::Deferred;
use vmm_core::irq::IrqTrigger;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_memory::MemoryReader;

use super::control::Control;
use super::state::{QueueArea, QueueRegisters, Registers};
use crate::virtio::{Interrupts, VirtioDevice};
use crate::{BusDevice, Doorbell, DoorbellError};

/// Where the configuration begins.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"VMMC");

/// The reset of one queue, which the kernel's headers lack (section 4.2.2).
const QUEUE_RESET: u32 = 0xc0;

/// What a length of shared memory reads as where there is none (section 4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// What a device gets of its machine.
pub struct MmioSetup {
    /// Its name, for messages.
    pub name: &'static str,
    /// Its first guest-physical address.
    pub base: u64,
    /// Guest RAM.
    pub memory: MemoryReader,
    /// Its interrupt.
    pub trigger: IrqTrigger,
    /// KVM's ioeventfds, where there are some.
    pub doorbells: Option<Arc<dyn DoorbellFds>>,
}

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the virtio-mmio device {device}")]
pub struct MmioError {
    /// The device.
    pub device: &'static str,
    /// Its doorbell.
    #[source]
    pub source: DoorbellError,
}

/// Interrupt status and line.
struct MmioInterrupts {
    status: AtomicU32,
    trigger: IrqTrigger,
}

impl MmioInterrupts {
    fn raise(&self, cause: u32) {
        // Before the trigger: the handler finds the cause. The end of the handler that acknowledged the last one was before, or
        // looks at its queues after this.
        self.status.fetch_or(cause, Ordering::AcqRel);
        self.trigger.trigger();
    }
}

impl Interrupts for MmioInterrupts {
    fn queue_used(&self, _index: usize) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn reset(&self) {
        self.status.store(0, Ordering::Release);
    }
}

/// A device in MMIO space. Dropped, it stops, and its doorbells are gone.
pub struct VirtioMmio {
    control: Control,
    interrupts: Arc<MmioInterrupts>,
}

impl VirtioMmio {
    /// Bytes of MMIO space.
    pub const LENGTH: u64 = 0x200;

    /// Puts `device` behind registers that are to be inserted into the bus at `setup.base`, [`LENGTH`](Self::LENGTH) bytes. Its doorbells are
    /// attached: one address, told apart by the queue's index.
    ///
    /// # Errors
    /// A doorbell cannot be made.
    pub fn new(device: Arc<dyn VirtioDevice>, setup: MmioSetup) -> Result<Self, MmioError> {
        let MmioSetup { name, base, memory, trigger, doorbells: vm } = setup;
        let address = base.saturating_add(VIRTIO_MMIO_QUEUE_NOTIFY.into());
        let queues = 0..device.queue_sizes().len() as u64;
        let doorbells = queues.map(|index| -> Result<_, DoorbellError> {
            let doorbell = Doorbell::new(vm.clone(), address)?;
            let space = DoorbellSpace::Mmio;
            doorbell.rebind(DoorbellAddress { space, address, width: 4, datamatch: Some(index) })?;
            Ok(doorbell)
        });
        let doorbells = doorbells.collect::<Result<_, _>>();
        let doorbells = doorbells.map_err(|source| MmioError { device: name, source })?;
        let interrupts = Arc::new(MmioInterrupts { status: AtomicU32::new(0), trigger });
        let control = Control::new(name, device, memory, doorbells, Arc::clone(&interrupts) as _);
        Ok(Self { control, interrupts })
    }

    fn load(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.control.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupts.status.load(Ordering::Acquire),
            VIRTIO_MMIO_STATUS => self.control.status().into(),
            VIRTIO_MMIO_CONFIG_GENERATION => self.control.config_generation(),
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => NO_SHARED_MEMORY,
            VIRTIO_MMIO_DEVICE_FEATURES => self.control.with_registers(|registers| registers.offered()),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.of_queue(|queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.of_queue(|queue| queue.is_enabled().into()),
            QUEUE_RESET => self.of_queue(|queue| queue.is_resetting().into()),
            _ => 0,
        }
    }

    fn store(&self, register: u32, value: u32) -> Option<Deferred> {
        match register {
            VIRTIO_MMIO_QUEUE_NOTIFY => self.control.notify(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupts.status.fetch_and(!value, Ordering::AcqRel);
            }
            VIRTIO_MMIO_STATUS => {
                // Bits beyond the eighth are none that a driver may set.
                self.control.set_status(u8::try_from(value).unwrap_or(u8::MAX));
                if value == 0 {
                    return self.control.reset_end();
                }
            }
            VIRTIO_MMIO_QUEUE_READY if value == 1 => self.control.enable_queue(),
            QUEUE_RESET if value == 1 => self.control.reset_queue(),
            _ => self.control.with_registers(|registers| set_up(registers, register, value)),
        }
        None
    }

    fn of_queue(&self, f: impl FnOnce(&QueueRegisters) -> u32) -> u32 {
        self.control.with_registers(|registers| registers.queue().map_or(0, f))
    }
}

/// The registers with which a driver negotiates features and sets up queues.
fn set_up(registers: &mut Registers, register: u32, value: u32) {
    use QueueArea::{Available, Descriptors, Used};
    match register {
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.select_offered(value),
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.select_accepted(value),
        VIRTIO_MMIO_DRIVER_FEATURES => registers.accept(value),
        VIRTIO_MMIO_QUEUE_SEL => registers.select_queue(value),
        VIRTIO_MMIO_QUEUE_NUM => registers.set_queue_size(value),
        VIRTIO_MMIO_QUEUE_READY if value == 0 => registers.disable_queue(),
        VIRTIO_MMIO_QUEUE_DESC_LOW => registers.set_queue_address(Descriptors, false, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => registers.set_queue_address(Descriptors, true, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => registers.set_queue_address(Available, false, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => registers.set_queue_address(Available, true, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => registers.set_queue_address(Used, false, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => registers.set_queue_address(Used, true, value),
        _ => registers.ignore(),
    }
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.control.read_config(offset, data);
        }
        data.fill(0);
        if let (Some(register), Ok(data)) = (register(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.load(register).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Nobody is left to wait for the end of a reset.
        drop(self.write_deferred(offset, data));
    }

    fn write_deferred(&self, offset: u64, data: &[u8]) -> Option<Deferred> {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.control.write_config(offset, data);
            return None;
        }
        match (register(offset), data.try_into().map(u32::from_le_bytes)) {
            (Some(register), Ok(value)) => self.store(register, value),
            _ => {
                self.control.with_registers(Registers::ignore);
                None
            }
        }
    }
}

/// The register at `offset`, if one can be there.
fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
