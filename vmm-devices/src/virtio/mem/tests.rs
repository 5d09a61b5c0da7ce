//! The memory device with drivers that behave and drivers that do not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_core::VmEvents;
use vmm_memory::{AddressSpace, Backing, HotplugLayout, HotplugRegion, PinHolder, Quiesce, RamRange};

use super::*;
use crate::Worker;
use crate::virtio::VirtioDevice;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use crate::virtio::testing::{Driver, Started, Used, ram};

const SIZE: u16 = 64;
const START: u64 = 1 << 32;
const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 8;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const BUSY: (u16, u16) = (2, 0);
const ERROR: (u16, u16) = (3, 0);

/// Eight blocks, four in a chunk.
const LAYOUT: HotplugLayout = HotplugLayout {
    range: RamRange { start: START, size: BLOCKS * BLOCK },
    block_size: BLOCK,
    chunk_size: 4 * BLOCK,
};

/// A device, its memory, and its driver.
struct Bench {
    memory: Arc<AddressSpace>,
    requested: Arc<AtomicU64>,
    mem: Arc<Mem>,
    driver: Driver,
    started: Started,
}

fn device(memory: &Arc<AddressSpace>, requested: &Arc<AtomicU64>, node: Option<u16>) -> Mem {
    let region = HotplugRegion::reserve(memory, LAYOUT, &Backing::default()).unwrap();
    let worker = Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap();
    Mem::new(Arc::new(worker), MemOptions { region, requested: Arc::clone(requested), node })
}

impl Bench {
    /// That asks for all blocks.
    fn new(features: u64) -> Self {
        let (memory, requested) = (ram(), Arc::new(AtomicU64::new(BLOCKS * BLOCK)));
        let mem = Arc::new(device(&memory, &requested, None));
        let driver = Driver::new(&memory, 0, SIZE, 0x1_0000);
        let started = Started::new(&*mem, &memory, &[&driver], features).unwrap();
        Self { memory, requested, mem, driver, started }
    }

    /// Asks, and waits for the answer: its type and the state.
    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        self.ask_bytes(&request(kind, address, count))
    }

    fn ask_bytes(&mut self, bytes: &[u8]) -> (u16, u16) {
        let request = self.driver.submit(&[bytes], &[10]);
        self.started.doorbells[0].ring();
        let used = self.started.wait_used(&mut self.driver, 1);
        assert_eq!(used, [Used { head: request.head.into(), written: 10 }]);
        self.answer(request.writable[0].0)
    }

    fn answer(&self, at: u64) -> (u16, u16) {
        let bytes = self.driver.read(at, 10);
        (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[8], bytes[9]]))
    }

    fn plug(&mut self, block: u64, count: u16) -> (u16, u16) {
        self.ask(PLUG, at(block), count)
    }

    fn unplug(&mut self, block: u64, count: u16) -> (u16, u16) {
        self.ask(UNPLUG, at(block), count)
    }

    /// What a device finds at a block.
    fn load(&self, block: u64) -> Option<u64> {
        self.memory.memory().read_obj(GuestAddress(at(block))).ok()
    }

    fn plugged(&self) -> u64 {
        self.mem.counts().plugged_bytes / BLOCK
    }
}

fn at(block: u64) -> u64 {
    START + block * BLOCK
}

fn request(kind: u16, address: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0xee; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

fn field(mem: &Mem, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    mem.read_config(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn blocks_come_and_go_as_the_driver_asks_and_what_is_unplugged_is_refused_to_devices() {
    for features in [0, EVENT_IDX | INDIRECT_DESC] {
        let mut bench = Bench::new(features);
        assert_eq!(bench.plug(1, 3), ACK);
        bench.memory.memory().write_obj(7_u64, GuestAddress(at(3))).unwrap();
        assert_eq!([0, 1, 3, 4].map(|block| bench.load(block)), [None, Some(0), Some(7), None]);
        assert_eq!((bench.plugged(), field(&bench.mem, 40)), (3, 3 * BLOCK));
        let states =
            [(1, 3), (0, 1), (0, 2), (4, 4)].map(|(block, count)| bench.ask(STATE, at(block), count));
        assert_eq!(states, [(0, 0), (0, 1), (0, 2), (0, 1)]);
        assert_eq!((bench.unplug(2, 1), bench.load(2), bench.load(3)), (ACK, None, Some(7)));
        assert_eq!((bench.ask(UNPLUG_ALL, 0, 0), bench.plugged()), (ACK, 0));
        assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), ACK);
        assert_eq!((bench.plug(0, 8), bench.load(3)), (ACK, Some(0)));
        let counts = bench.mem.counts();
        assert_eq!((counts.plugs, counts.unplugs, counts.states), (2, 3, 4));
        assert_eq!((counts.busy, counts.beyond_requested, counts.broken), (0, 0, 0));
        assert!(!bench.started.needs_reset());
    }
}

#[test]
fn the_guest_gets_no_more_than_is_requested_and_is_told_of_another_size() {
    let mut bench = Bench::new(0);
    bench.mem.request(3 * BLOCK).unwrap();
    bench.started.interrupts.wait_for_config();
    assert_eq!((field(&bench.mem, 48), bench.requested.load(Ordering::Relaxed)), (3 * BLOCK, 3 * BLOCK));
    assert_eq!((bench.plug(0, 4), bench.plug(0, 3), bench.plug(3, 1)), (NACK, ACK, NACK));
    bench.mem.request(4 * BLOCK).unwrap();
    assert_eq!(bench.plug(7, 1), ACK);
    // Less than there is: the driver gives back what it can, when it can.
    bench.mem.request(0).unwrap();
    assert_eq!((bench.plug(4, 1), bench.unplug(7, 1), bench.plugged()), (NACK, ACK, 3));
    assert_eq!(bench.mem.counts().beyond_requested, 3);
    let region = BLOCKS * BLOCK;
    assert_eq!(
        bench.mem.request(region + BLOCK),
        Err(SizeError::BeyondRegion { bytes: region + BLOCK, region })
    );
    assert_eq!(bench.mem.request(1), Err(SizeError::NotBlocks { bytes: 1, block: BLOCK }));
    assert_eq!(bench.mem.counts().requested_bytes, 0);
}

#[test]
fn what_cannot_be_requested_at_the_beginning_becomes_nothing() {
    for (bytes, becomes) in [(BLOCK, BLOCK), (BLOCK + 1, 0), (u64::MAX, 0)] {
        let requested = Arc::new(AtomicU64::new(bytes));
        let mem = device(&ram(), &requested, None);
        assert_eq!((mem.counts().requested_bytes, requested.load(Ordering::Relaxed)), (becomes, becomes));
    }
}

#[test]
fn a_request_that_breaks_a_rule_is_an_error_and_changes_nothing() {
    let mut bench = Bench::new(0);
    assert_eq!(bench.plug(2, 2), ACK);
    for (address, count) in [
        (at(0) + 1, 1),
        (at(0) + BLOCK / 2, 1),
        (at(0), 0),
        (at(0) - BLOCK, 1),
        (at(0) - BLOCK, 2),
        (at(7), 2),
        (at(8), 1),
        (0, 1),
        (at(0), u16::MAX),
        (u64::MAX - BLOCK + 1, 1),
        (u64::MAX - BLOCK + 1, 2),
        (u64::MAX, u16::MAX),
    ] {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(bench.ask(kind, address, count), ERROR, "{kind} {address:#x} {count}");
        }
    }
    for (block, count) in [(2, 1), (1, 2), (2, 2), (0, 8)] {
        assert_eq!(bench.plug(block, count), ERROR, "{block} {count}");
    }
    for (block, count) in [(1, 1), (1, 2), (3, 2), (0, 8)] {
        assert_eq!(bench.unplug(block, count), ERROR, "{block} {count}");
    }
    for kind in [4, 0x100, u16::MAX] {
        assert_eq!(bench.ask(kind, at(0), 1), ERROR);
    }
    assert_eq!((bench.plugged(), bench.mem.counts().broken), (2, 36 + 8 + 3));
}

#[test]
fn fault_a6_a_request_without_its_parts_is_not_carried_out() {
    let mut bench = Bench::new(0);
    let all = request(PLUG, at(0), 1);
    // Too short, in one piece and in none.
    assert_eq!((bench.ask_bytes(&all[..23]), bench.ask_bytes(&[])), (ERROR, ERROR));
    for (readable, writable) in [(&[&all[..]][..], &[][..]), (&[&all], &[9]), (&[&all], &[0]), (&[], &[4, 5])]
    {
        let head = bench.driver.submit(readable, writable).head.into();
        bench.started.doorbells[0].ring();
        assert_eq!(bench.started.wait_used(&mut bench.driver, 1), [Used { head, written: 0 }]);
    }
    assert_eq!((bench.plugged(), bench.mem.counts().broken), (0, 6));
    // However it is divided, it is the same request.
    let request = bench.driver.submit(&[&all[..1], &all[1..17], &all[17..]], &[1, 0, 3, 60]);
    bench.started.doorbells[0].ring();
    let used = bench.started.wait_used(&mut bench.driver, 1);
    assert_eq!((used, bench.plugged()), (vec![Used { head: request.head.into(), written: 10 }], 1));
}

#[test]
fn requests_that_are_there_at_once_are_answered_in_their_order() {
    let mut bench = Bench::new(0);
    let requests: Vec<_> = (0..20)
        .map(|number: u64| {
            let kind = if number.is_multiple_of(2) { PLUG } else { UNPLUG };
            bench.driver.submit(&[&request(kind, at(number / 4), 1)], &[10])
        })
        .collect();
    bench.started.doorbells[0].ring();
    let used = bench.started.wait_used(&mut bench.driver, requests.len());
    let heads: Vec<_> =
        requests.iter().map(|request| Used { head: request.head.into(), written: 10 }).collect();
    assert_eq!(used, heads);
    assert!(requests.iter().all(|request| bench.answer(request.writable[0].0) == ACK));
    assert_eq!(bench.plugged(), 0);
}

#[test]
fn a_block_in_which_a_device_has_a_request_is_busy_until_that_has_ended() {
    let mut bench = Bench::new(0);
    assert_eq!(bench.plug(0, 4), ACK);
    let pin = {
        let table = bench.memory.memory();
        let region = table.find_region(GuestAddress(at(1))).unwrap();
        let holder = PinHolder::new("disk0", |_| ());
        region.pin_part(at(1) - region.start_addr().0, 512, &holder).unwrap()
    };
    assert_eq!((bench.unplug(0, 4), bench.unplug(1, 1), bench.ask(UNPLUG_ALL, 0, 0)), (BUSY, BUSY, BUSY));
    assert_eq!((bench.unplug(2, 2), bench.plugged(), bench.mem.counts().busy), (ACK, 2, 3));
    drop(pin);
    assert_eq!((bench.ask(UNPLUG_ALL, 0, 0), bench.plugged()), (ACK, 0));
}

#[test]
fn the_configuration_says_where_the_blocks_are_and_cannot_be_written_to() {
    let requested = Arc::new(AtomicU64::new(BLOCK));
    let mem = device(&ram(), &requested, Some(3));
    mem.write_config(0, &[0xff; 56]);
    let fields = [0, 8, 16, 24, 32, 40, 48, 56].map(|offset| field(&mem, offset));
    assert_eq!(fields, [BLOCK, 3, START, BLOCKS * BLOCK, BLOCKS * BLOCK, 0, BLOCK, 0]);
    assert_eq!((mem.device_type(), mem.queue_sizes()), (24, &[64][..]));
    assert_eq!(mem.features() & 3, 3);
    assert_eq!(device(&ram(), &requested, None).features() & 3, 2);
}

#[test]
fn a_reset_of_the_device_leaves_the_blocks_and_their_contents() {
    let mut bench = Bench::new(0);
    assert_eq!(bench.plug(0, 2), ACK);
    bench.memory.memory().write_obj(7_u64, GuestAddress(at(1))).unwrap();
    let Bench { memory, mem, started, .. } = bench;
    assert_eq!(started.stop().len(), 1);
    assert_eq!(memory.memory().read_obj::<u64>(GuestAddress(at(1))).unwrap(), 7);
    let mut driver = Driver::new(&memory, 0, SIZE, 0x8_0000);
    let started = Started::new(&*mem, &memory, &[&driver], 0).unwrap();
    let asked = driver.submit(&[&request(UNPLUG_ALL, 0, 0)], &[10]);
    started.doorbells[0].ring();
    assert_eq!(started.wait_used(&mut driver, 1), [Used { head: asked.head.into(), written: 10 }]);
    assert_eq!(mem.counts().plugged_bytes, 0);
    drop(started);
    drop(mem);
    // With the device the region goes, and its addresses are free.
    device(&memory, &Arc::default(), None);
}

#[test]
fn fault_a3_an_answer_into_memory_that_the_request_has_unplugged_is_an_error_of_this_device_alone() {
    let mut bench = Bench::new(0);
    assert_eq!(bench.plug(0, 2), ACK);
    bench.driver.write(0x2000, &request(UNPLUG, at(1), 1));
    let descriptor = virtio_queue::desc::split::Descriptor::new;
    bench.driver.set_descriptor(62, descriptor(0x2000, 24, crate::virtio::testing::NEXT, 63));
    bench.driver.set_descriptor(63, descriptor(at(1), 10, crate::virtio::testing::WRITE, 0));
    bench.driver.make_available(62);
    bench.started.doorbells[0].ring();
    bench.started.interrupts.wait_for_config();
    assert!(bench.started.needs_reset());
    assert_eq!((bench.plugged(), bench.load(1), bench.load(0)), (1, None, Some(0)));
}

/// A standstill that lasts until somebody says so.
struct Gate {
    begun: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl Quiesce for Gate {
    fn quiesce(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.begun.lock().unwrap().send(())?;
        self.go_on.lock().unwrap().recv()?;
        Ok(())
    }

    fn release(&self) {}
}

/// A bench in which a change has begun that ends when something is sent, or the sender is dropped, which makes it fail.
fn in_a_change() -> (Bench, Sender<()>) {
    let mut bench = Bench::new(0);
    let ((begun, has_begun), (sender, go_on)) = (channel(), channel());
    bench.memory.set_machine(Arc::new(Gate { begun: Mutex::new(begun), go_on: Mutex::new(go_on) }));
    assert_eq!(bench.plug(0, 4), ACK);
    bench.driver.submit(&[&request(UNPLUG, at(1), 1)], &[10]);
    bench.driver.submit(&[&request(UNPLUG, at(3), 1)], &[10]);
    bench.started.doorbells[0].ring();
    has_begun.recv().unwrap();
    (bench, sender)
}

#[test]
fn fault_b6_a_reset_waits_for_the_change_that_is_under_way_and_makes_none_that_waits() {
    let (Bench { mem, started, .. }, sender) = in_a_change();
    let (stopped, has_stopped) = channel();
    started.running.stop(Box::new(move |states| stopped.send(states).unwrap()));
    assert!(has_stopped.try_recv().is_err(), "a change is under way");
    sender.send(()).unwrap();
    assert_eq!(has_stopped.recv().unwrap().len(), 1);
    assert_eq!(mem.counts().plugged_bytes, 3 * BLOCK);
}

#[test]
fn a_machine_that_does_not_come_to_a_standstill_is_busy_and_at_its_end_nothing_changes_any_more() {
    let (mut bench, sender) = in_a_change();
    drop(sender);
    let used = bench.started.wait_used(&mut bench.driver, 2);
    assert_eq!((used.len(), bench.plugged(), bench.mem.counts().busy), (2, 4, 2));
    bench.mem.end();
    assert_eq!((bench.ask(UNPLUG_ALL, 0, 0), bench.plugged()), (BUSY, 4));
}

#[test]
fn fault_d5_the_end_waits_for_the_change_that_is_under_way() {
    let (bench, sender) = in_a_change();
    let mem = Arc::clone(&bench.mem);
    let ending = std::thread::spawn(move || mem.end());
    sender.send(()).unwrap();
    ending.join().unwrap();
    let plugged = bench.plugged();
    drop(sender);
    assert_eq!((plugged, bench.plugged()), (3, 3));
}
