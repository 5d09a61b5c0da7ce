//! The self-test device: one register for each mechanism of the monitor, for guests that check or measure it.
//!
//! MMIO registers, 4 bytes wide, little-endian, at offsets from the base; other widths and offsets read as zero and
//! are ignored when written:
//!
//! | offset | name | access | |
//! |---|---|---|---|
//! | 0x00 | magic | R | `0x54534d56` ("VMST") |
//! | 0x04 | version | R | 1 |
//! | 0x08 | line | R | the irqchip pin its interrupt is connected to |
//! | 0x0c | ports | R | first of its 4 ports |
//! | 0x10 | scratch | RW | keeps what is written: the MMIO exit |
//! | 0x14 | raise | W | raises the interrupt at once |
//! | 0x18 | control | RW | bit 0: every batch of served doorbell rings raises the interrupt |
//! | 0x1c | rings | R | doorbell rings served so far |
//! | 0x20 | doorbell | W | rings the doorbell (an ioeventfd where the host has them) |
//!
//! Ports, from the first: +0 scratch byte (RW), +1 string (R: 0, 1, 2, … one byte an element; W: adds the byte to a
//! sum), +2 sum of the bytes written to +1 (R; any write clears it and restarts the string), +3 reads as zero.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use vmm_core::irq::IrqTrigger;
use vmm_core::seam::{DoorbellAddress, DoorbellFds, DoorbellSpace};
use vmm_core::{VmEvent, VmEvents};

use crate::calls::SELFTEST;
use crate::{BusDevice, Doorbell, DoorbellError, Handler, Progress, Worker, WorkerError};

/// Bytes of MMIO space.
pub const MMIO_LENGTH: u64 = 0x1000;
/// Number of ports.
pub const PORTS: u64 = 4;

const MAGIC: u32 = u32::from_le_bytes(*b"VMST");
const VERSION: u32 = 1;
const DOORBELL_OFFSET: u64 = 0x20;

/// Where the device sits, as the guest is told by its registers.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// First guest-physical address.
    pub base: u64,
    /// First port.
    pub ports: u16,
    /// The irqchip pin of its interrupt; only handed on to the guest.
    pub line: u32,
}

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SelftestError {
    /// The doorbell.
    #[error(transparent)]
    Doorbell(#[from] DoorbellError),
    /// The worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// State that the guest's accesses and the worker share.
struct Shared {
    trigger: IrqTrigger,
    interrupt_on_ring: AtomicU32,
    rings: AtomicU32,
}

/// The MMIO half. Dropped, its worker is joined and its doorbell is gone.
pub struct Selftest {
    placement: Placement,
    shared: Arc<Shared>,
    scratch: AtomicU32,
    doorbell: Doorbell,
    _handler: Handler,
    _worker: Worker,
}

impl Selftest {
    /// Makes the device. Without `vm` the doorbell register works through exits.
    pub fn new(
        placement: Placement,
        trigger: IrqTrigger,
        vm: Option<Arc<dyn DoorbellFds>>,
        events: &VmEvents,
    ) -> Result<Self, SelftestError> {
        let address = placement.base.saturating_add(DOORBELL_OFFSET);
        let doorbell = Doorbell::new(vm, address)?;
        let shared =
            Arc::new(Shared { trigger, interrupt_on_ring: AtomicU32::new(0), rings: AtomicU32::new(0) });
        let worker = Worker::spawn(&SELFTEST, events.clone())?;
        let serve = {
            let shared = Arc::clone(&shared);
            move |rings| shared.serve(rings)
        };
        let failed = {
            let events = events.clone();
            move || {
                events.send(VmEvent::Internal("the handler of the self-test device panicked".into()));
            }
        };
        let handler = worker.add("selftest", doorbell.eventfd(), serve, failed)?;
        doorbell.rebind(DoorbellAddress {
            space: DoorbellSpace::Mmio,
            address,
            width: 4,
            datamatch: None,
        })?;
        Ok(Self {
            placement,
            shared,
            scratch: AtomicU32::new(0),
            doorbell,
            _handler: handler,
            _worker: worker,
        })
    }
}

impl Shared {
    fn serve(&self, rings: u64) -> Progress {
        // Released: a guest that sees the count sees what was done for it. Wraps, as a 32-bit register does.
        self.rings.fetch_add((rings & 0xffff_ffff) as u32, Ordering::Release);
        if self.interrupt_on_ring.load(Ordering::Relaxed) & 1 != 0 {
            self.trigger.trigger();
        }
        Progress::Done
    }
}

impl BusDevice for Selftest {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.placement.line,
            0x0c => u32::from(self.placement.ports),
            0x10 => self.scratch.load(Ordering::Relaxed),
            0x18 => self.shared.interrupt_on_ring.load(Ordering::Relaxed),
            0x1c => self.shared.rings.load(Ordering::Acquire),
            _ => 0,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(register) => *register = value.to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            0x10 => self.scratch.store(value, Ordering::Relaxed),
            0x14 => self.shared.trigger.trigger(),
            0x18 => self.shared.interrupt_on_ring.store(value, Ordering::Relaxed),
            // Reached only without ioeventfd.
            DOORBELL_OFFSET => self.doorbell.ring(),
            _ => {}
        }
    }
}

/// The port half.
#[derive(Debug, Default)]
pub struct SelftestPorts {
    scratch: AtomicU8,
    next: AtomicU8,
    sum: AtomicU8,
}

impl BusDevice for SelftestPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(byte) = data.first_mut() else { return };
        *byte = match offset {
            0 => self.scratch.load(Ordering::Relaxed),
            1 => self.next.fetch_add(1, Ordering::Relaxed),
            2 => self.sum.load(Ordering::Relaxed),
            _ => 0,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&byte) = data.first() else { return };
        match offset {
            0 => self.scratch.store(byte, Ordering::Relaxed),
            1 => {
                self.sum.fetch_add(byte, Ordering::Relaxed);
            }
            2 => {
                self.sum.store(0, Ordering::Relaxed);
                self.next.store(0, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_core::fake::{FakeCall, FakeVm};

    use super::*;

    const PLACEMENT: Placement = Placement { base: 0xd000_0000, ports: 0xd00, line: 5 };

    fn events() -> VmEvents {
        VmEvents::new().unwrap()
    }

    fn load(device: &Selftest, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_guest_learns_where_everything_is() {
        let device = Selftest::new(PLACEMENT, IrqTrigger::unconnected().unwrap(), None, &events()).unwrap();
        assert_eq!(load(&device, 0).to_le_bytes(), *b"VMST");
        assert_eq!((load(&device, 8), load(&device, 0xc)), (5, 0xd00));
    }

    #[test]
    fn without_ioeventfd_each_write_to_the_doorbell_is_served_and_may_interrupt() {
        let trigger = IrqTrigger::unconnected().unwrap();
        let device = Selftest::new(PLACEMENT, trigger.clone(), None, &events()).unwrap();
        device.write(0x18, &1u32.to_le_bytes());
        for _ in 0..100 {
            device.write(0x20, &0u32.to_le_bytes());
        }
        while load(&device, 0x1c) < 100 {
            std::thread::yield_now();
        }
        drop(device);
        assert!((1..=100).contains(&trigger.signals()));
    }

    #[test]
    fn with_ioeventfd_the_doorbell_is_attached_for_the_life_of_the_device() {
        let vm = Arc::new(FakeVm::default());
        let device =
            Selftest::new(PLACEMENT, IrqTrigger::unconnected().unwrap(), Some(vm.clone()), &events())
                .unwrap();
        let address =
            DoorbellAddress { space: DoorbellSpace::Mmio, address: 0xd000_0020, width: 4, datamatch: None };
        assert_eq!(vm.calls(), [FakeCall::AttachDoorbell(address)]);
        drop(device);
        assert_eq!(vm.calls().last(), Some(&FakeCall::DetachDoorbell(address)));
    }

    #[test]
    fn fault_b1_other_widths_and_gaps_read_as_zero_and_change_nothing() {
        let device = Selftest::new(PLACEMENT, IrqTrigger::unconnected().unwrap(), None, &events()).unwrap();
        device.write(0x10, &7u32.to_le_bytes());
        for width in [1, 2, 8] {
            device.write(0x10, &vec![0x55; width]);
            let mut data = vec![0xff; width];
            device.read(0x10, &mut data);
            assert_eq!(data, vec![0; width]);
        }
        assert_eq!((load(&device, 0x10), load(&device, 0x11), load(&device, 0xffc)), (7, 0, 0));
    }

    #[test]
    fn the_string_port_counts_elements_in_both_directions() {
        let ports = SelftestPorts::default();
        for expected in 0..4 {
            let mut byte = [0xff];
            ports.read(1, &mut byte);
            assert_eq!(byte, [expected]);
            ports.write(1, &[expected]);
        }
        let mut sum = [0];
        ports.read(2, &mut sum);
        assert_eq!(sum, [6]);
    }
}
