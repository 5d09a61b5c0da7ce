//! The memory device with a driver that breaks its ring, and asks for blocks in any order.

#![no_main]

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vmm_core::seam::{MemorySlot, MemorySlots};
use vmm_core::{IoctlError, VmEvents};
use vmm_devices::Worker;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::mem::{Mem, MemOptions};
use vmm_devices::virtio::testing::{Driver, Request, Started, Used};
use vmm_memory::{AddressSpace, Backing, HotplugLayout, HotplugRegion, RamRange};

mod rings;
use rings::{Input, Subject};

const START: u64 = 1 << 32;
const BLOCK: u64 = 0x1_0000;
const BLOCKS: u64 = 16;

const LAYOUT: HotplugLayout = HotplugLayout {
    range: RamRange { start: START, size: BLOCKS * BLOCK },
    block_size: BLOCK,
    chunk_size: 4 * BLOCK,
};

/// Slots of a machine that is not there.
struct NoSlots;

impl MemorySlots for NoSlots {
    fn slot_limit(&self) -> u32 {
        8
    }

    unsafe fn set_memory_slot(&self, _: &MemorySlot) -> Result<(), IoctlError> {
        Ok(())
    }
}

struct Memory(Mem);

static DEVICE: LazyLock<Memory> = LazyLock::new(|| {
    let events = VmEvents::new().expect("a descriptor");
    let space = Arc::new(AddressSpace::new(Arc::new(NoSlots)));
    let region = HotplugRegion::reserve(&space, LAYOUT, &Backing::default()).expect("a region");
    let requested = Arc::new(AtomicU64::new(12 * BLOCK));
    let options = MemOptions { region, requested, node: None };
    Memory(Mem::new(Arc::new(Worker::spawn(&vmm_devices::calls::VIRTIO, events).expect("a thread")), options))
});

fn bytes(kind: u16, address: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

impl Subject for Memory {
    const QUEUES: usize = 1;

    fn request(driver: &mut Driver, _: usize, input: &mut Input<'_>) -> Request {
        let form = input.byte();
        let (kind, count) = (u16::from(form % 5), u16::from(input.byte() % 20));
        let address = match form >> 4 {
            0 => input.long(),
            1 => START + u64::from(input.word()) * 0x1000,
            _ => START + u64::from(input.byte() % 18) * BLOCK,
        };
        let length = if form >> 4 == 2 { usize::from(input.byte() % 25) } else { 24 };
        let room = if form >> 4 == 3 { u32::from(input.byte() % 16) } else { 10 };
        driver.submit(&[&bytes(kind, address, count)[..length]], &[room])
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        for (kind, count, expected) in
            [(2, 0, [0, 0]), (0, 12, [0, 0]), (0, 1, [3, 0]), (3, 16, [0, 2]), (1, 12, [0, 0])]
        {
            let request = drivers[0].submit(&[&bytes(kind, START, count)], &[10]);
            started.doorbells[0].ring();
            let used = started.wait_used(&mut drivers[0], 1);
            assert_eq!(used, [Used { head: request.head.into(), written: 10 }]);
            let answer = drivers[0].read(request.writable[0].0, 10);
            assert_eq!([answer[0], answer[8]], expected, "{kind} {count}");
        }
        assert_eq!(self.0.counts().plugged_bytes, 0);
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.0
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
