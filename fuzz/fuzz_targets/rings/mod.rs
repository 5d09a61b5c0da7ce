//! A driver of a virtio device as an input says: rings that are in order, of which it breaks one thing here and there; then, after
//! a reset, one that behaves, which has to be served.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use vmm_devices::virtio::testing::{Driver, INDIRECT, NEXT, RAM, Request, Started, WRITE, ram};
use vmm_memory::AddressSpace;

/// Descriptors of a queue.
pub const SIZE: u16 = 16;
/// Steps of one input. What all of them lend fits into the memory of a queue.
const MOST_STEPS: usize = 64;
/// Steps of all inputs so far, which are said each time there are so many more.
static STEPS: AtomicU64 = AtomicU64::new(0);
const SAID_STEPS: u64 = 1 << 16;
/// Where the rings and buffers of the first queue are, and from there to the next one's.
const BASE: u64 = 0x1_0000;
const STRIDE: u64 = 0x8_0000;
/// Where nobody lends anything, and what is there.
const NEIGHBOUR: u64 = 0x1f_0000;
const CANARY: [u8; 4096] = [0xc5; 4096];

/// One for all inputs: memory that goes has to be waited for.
static MEMORY: LazyLock<Arc<AddressSpace>> = LazyLock::new(ram);

/// The input, byte by byte; zeros when it is over.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// What is particular to a type of device.
pub trait Subject {
    /// Number of its queues.
    const QUEUES: usize;

    /// Makes a request available that such a device can be asked for; at most 4 KiB are lent.
    fn request(driver: &mut Driver, queue: usize, input: &mut Input<'_>) -> Request;

    /// Has the device do its work for a driver that behaves, and looks at what comes of it.
    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]);

    /// The device.
    fn device(&self) -> &dyn VirtioDevice;
}

/// Plays `bytes`. The device has to stop whatever was done to it, to have left alone what it was not lent, and to serve the next driver.
pub fn play<S: Subject>(subject: &S, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let accepted = if input.byte() & 1 == 0 { EVENT_IDX | INDIRECT_DESC } else { 0 };
    let features = subject.device().features() | accepted;
    let (started, mut drivers) = start(subject, features);
    let mut is_broken = false;
    for _ in 0..MOST_STEPS {
        if input.is_over() {
            break;
        }
        let steps = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
        if steps % SAID_STEPS == 0 {
            eprintln!("steps: {steps}");
        }
        let step = input.byte();
        let queue = usize::from(step >> 4) % S::QUEUES;
        let driver = &mut drivers[queue];
        match step & 0xf {
            0 | 1 => {
                is_broken = true;
                break_one(driver, &mut input);
            }
            2..=4 => started.doorbells[queue].ring(),
            5 => while driver.take_used().is_some() && !is_broken {},
            6 if accepted != 0 => {
                driver.submit_indirect(&[&[0; 16]], &[16, 1]);
            }
            _ => drop(S::request(driver, queue, &mut input)),
        }
    }
    started.doorbells.iter().for_each(vmm_devices::Doorbell::ring);
    let states = started.stop();
    assert_eq!(states.len(), S::QUEUES, "a queue is lost");
    let mut neighbour = [0; CANARY.len()];
    MEMORY.memory().read_slice(&mut neighbour, GuestAddress(NEIGHBOUR)).expect("guest RAM");
    // What is broken may name any address of the guest: that is the guest's to lose.
    assert!(is_broken || neighbour == CANARY, "memory was written to that nobody has lent");
    let (started, mut drivers) = start(subject, features);
    subject.ensure_served(&started, &mut drivers);
    assert!(!started.needs_reset(), "a driver that behaves is told to reset the device");
    drop(started.stop());
}

/// A device that runs in memory as it was at the beginning, and its driver.
fn start<S: Subject>(subject: &S, features: u64) -> (Started, Vec<Driver>) {
    let memory = MEMORY.memory();
    for queue in 0..S::QUEUES {
        memory.write_slice(&[0; STRIDE as usize], GuestAddress(base(queue))).expect("guest RAM");
    }
    memory.write_slice(&CANARY, GuestAddress(NEIGHBOUR)).expect("guest RAM");
    drop(memory);
    let drivers: Vec<_> =
        (0..S::QUEUES).map(|queue| Driver::new(&MEMORY, queue, SIZE, base(queue))).collect();
    let started = Started::new(subject.device(), &MEMORY, &drivers.iter().collect::<Vec<_>>(), features);
    (started.expect("a device that starts"), drivers)
}

fn base(queue: usize) -> u64 {
    BASE + STRIDE * queue as u64
}

/// Breaks one thing.
fn break_one(driver: &mut Driver, input: &mut Input<'_>) {
    let index = input.word() % SIZE;
    let address = match input.byte() % 4 {
        0 => input.long(),
        // Up to a hole, and over it.
        1 => RAM[1].start + RAM[1].size - u64::from(input.byte()),
        2 => driver.setup().used_ring,
        _ => BASE + u64::from(input.word()),
    };
    match input.byte() % 10 {
        0 => {
            let (length, flags, next) = (input.long() as u32, input.word(), input.word());
            driver.set_descriptor(index, Descriptor::new(address, length, flags, next));
        }
        1 => driver.set_available_entry(driver.available_index().wrapping_sub(1), input.word()),
        2 => driver.set_available_index(input.word()),
        3 => driver.make_available(input.word()),
        4 => {
            let flags = INDIRECT | (input.word() & (NEXT | WRITE));
            driver.set_descriptor(index, Descriptor::new(address, input.word().into(), flags, index));
            driver.make_available(index);
        }
        5 => {
            let flags = NEXT | (input.word() & WRITE);
            driver.set_descriptor(index, Descriptor::new(address, 1, flags, index));
            driver.make_available(index);
        }
        6 => driver.set_used_event(input.word()),
        7 => driver.set_available_flags(input.word()),
        8 => {
            let next = (index + 1) % SIZE;
            driver.set_descriptor(index, Descriptor::new(address, u32::MAX, NEXT | WRITE, next));
            driver.set_descriptor(next, Descriptor::new(address, u32::MAX, WRITE, 0));
            driver.make_available(index);
        }
        _ => {
            // A table that leads to itself, or is of an odd length.
            let table = driver.setup().descriptor_table;
            driver.set_descriptor(index, Descriptor::new(table, u32::from(input.byte()), INDIRECT, 0));
            driver.make_available(index);
        }
    }
}
