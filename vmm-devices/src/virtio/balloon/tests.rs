//! The balloon with a driver that behaves and one that does not, and what the host sees of both.

mod faults;
mod hints;
mod reports;
mod statistics;

use std::sync::Arc;
use std::time::Duration;

use vmm_core::VmEvents;
use vmm_memory::AddressSpace;

use super::config::{DEFLATE_ON_OOM, FREE_PAGE_HINT, MUST_TELL_HOST, PAGE_POISON, PAGE_REPORTING, STATS_VQ};
use super::*;
use crate::Worker;
use crate::virtio::VirtioDevice;
use crate::virtio::features::{EVENT_IDX, RING_RESET};
use crate::virtio::testing::{Driver, RAM, Started, Used, ram};

/// Descriptors of a queue.
const SIZE: u16 = 16;

/// The queues, if all are there.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTS: usize = 3;
const REPORTS: usize = 4;

/// What a driver negotiates that knows everything.
const ALL: u64 = STATS_VQ | FREE_PAGE_HINT | PAGE_REPORTING | EVENT_IDX;

/// A balloon, the memory of its guest, and a driver for each queue. Their rings and buffers are in the first range of [`RAM`].
struct Machine {
    device: Balloon,
    memory: Arc<AddressSpace>,
    drivers: Vec<Driver>,
}

impl Machine {
    fn new() -> Self {
        Self::on(ram())
    }

    fn on(memory: Arc<AddressSpace>) -> Self {
        let worker = Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap());
        let options = BalloonOptions {
            settings: BalloonSettings::new(0, Duration::ZERO),
            deflate_on_oom: true,
            free_page_reporting: true,
            large_pages: false,
            most: 4 << 20,
        };
        let driver = |index| Driver::new(&memory, index, SIZE, 0x1_0000 + 0x2_0000 * index as u64);
        let drivers = (0..=REPORTS).map(driver).collect();
        Self { device: Balloon::new(worker, options), memory, drivers }
    }

    fn start(&self, features: u64) -> Started {
        let drivers: Vec<_> = self.drivers.iter().collect();
        Started::new(&self.device, &self.memory, &drivers, features).unwrap()
    }

    /// Fills the two last ranges of RAM.
    fn fill(&self) {
        for range in &RAM[1..] {
            self.drivers[0].write(range.start, &vec![0x5a; range.size as usize]);
        }
    }

    /// Whether the page at `address` is as it was filled, or all zeros.
    fn is_filled(&self, address: u64) -> bool {
        match self.drivers[0].read(address, PAGE as usize) {
            page if page == [0x5a; PAGE as usize] => true,
            page if page == [0; PAGE as usize] => false,
            _ => panic!("something else is at {address:#x}"),
        }
    }

    /// Submits a request to a queue and waits until it is used; the bytes that the device says it has written.
    fn ask(&mut self, started: &Started, queue: usize, readable: &[&[u8]], writable: &[u32]) -> u32 {
        let request = self.drivers[queue].submit(readable, writable);
        started.doorbells[queue].ring();
        let used = started.wait_used(&mut self.drivers[queue], 1);
        assert_eq!(used[0].head, u32::from(request.head));
        used[0].written
    }

    /// Names pages to the queue of those that go in or come out.
    fn name(&mut self, started: &Started, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        assert_eq!(self.ask(started, queue, &[&bytes], &[]), 0);
    }

    fn config(&self) -> [u32; 4] {
        let mut bytes = [0; 16];
        self.device.read_config(0, &mut bytes);
        let (words, _) = bytes.as_chunks();
        std::array::from_fn(|index| u32::from_le_bytes(words[index]))
    }
}

/// The number of the first page of the second and of the third range of RAM.
const SECOND: u32 = 0x200;
const THIRD: u32 = 0x400;

fn address(page: u32) -> u64 {
    u64::from(page) * PAGE
}

#[test]
fn what_is_offered_follows_from_the_options() {
    let machine = Machine::new();
    assert_eq!((machine.device.device_type(), machine.device.queue_sizes().len()), (5, 5));
    let always = STATS_VQ | FREE_PAGE_HINT | PAGE_POISON | RING_RESET;
    assert_eq!(machine.device.features(), always | DEFLATE_ON_OOM | PAGE_REPORTING);
    let worker = Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap());
    let settings = BalloonSettings::new(12345, Duration::from_secs(1));
    assert_eq!((settings.target(), settings.statistics_interval()), (3 * PAGE, Duration::from_secs(1)));
    let options = BalloonOptions {
        settings,
        deflate_on_oom: false,
        free_page_reporting: false,
        large_pages: true,
        most: PAGE,
    };
    let device = Balloon::new(worker, options);
    assert_eq!((device.features(), device.queue_sizes().len()), (always | MUST_TELL_HOST, 4));
}

#[test]
fn pages_that_go_in_are_given_back_and_those_that_come_out_can_be_used() {
    for features in [0, ALL] {
        let mut machine = Machine::new();
        machine.fill();
        let started = machine.start(features);
        // In no order, one twice, and over the border of two ranges of RAM.
        machine.name(&started, INFLATE, &[SECOND + 3, SECOND + 1, SECOND, SECOND + 3, THIRD + 255, THIRD]);
        for page in (SECOND..SECOND + 256).chain(THIRD..THIRD + 256) {
            let is_in = [SECOND, SECOND + 1, SECOND + 3, THIRD, THIRD + 255].contains(&page);
            assert_eq!(machine.is_filled(address(page)), !is_in, "{page:#x}");
        }
        let counts = machine.device.counts();
        assert_eq!((counts.inflated_pages, counts.returned_bytes), (5, 5 * PAGE));
        machine.drivers[0].write(address(THIRD), b"used again");
        machine.name(&started, DEFLATE, &[THIRD, THIRD + 255]);
        assert_eq!(machine.drivers[0].read(address(THIRD), 10), b"used again");
        let counts = machine.device.counts();
        assert_eq!((counts.deflated_pages, counts.refused_pages, counts.broken), (2, 0, 0));
        assert!(!started.needs_reset());
    }
}

#[test]
fn a_target_is_in_the_configuration_and_a_new_one_is_an_interrupt() {
    let machine = Machine::new();
    assert_eq!(machine.config(), [0, 0, 1, 0]);
    // Before there is a driver.
    machine.device.set_target(2 * PAGE).unwrap();
    assert!(!machine.device.status().has_driver);
    let started = machine.start(ALL);
    assert_eq!(machine.config()[0], 2);
    machine.device.set_target(1 << 20).unwrap();
    started.interrupts.wait_for_config();
    assert_eq!(machine.config(), [256, 0, 1, 0]);
    machine.device.write_config(4, &100_u32.to_le_bytes());
    let status = machine.device.status();
    assert_eq!((status.target, status.actual, status.has_driver), (1 << 20, 100 * PAGE, true));
    assert_eq!(machine.device.set_target(4097), Err(BalloonError::NotPages { bytes: 4097 }));
    let too_large = BalloonError::TooLarge { bytes: 8 << 20, most: 4 << 20 };
    assert_eq!(machine.device.set_target(8 << 20), Err(too_large));
    assert_eq!(machine.device.status(), status);
}

#[test]
fn fault_b6_a_reset_leaves_an_empty_balloon_that_is_to_be_as_large_as_before() {
    let mut machine = Machine::new();
    machine.device.set_target(1 << 20).unwrap();
    for round in 0..20 {
        let started = machine.start(ALL);
        machine.device.write_config(4, &200_u32.to_le_bytes());
        machine.device.write_config(12, &7_u32.to_le_bytes());
        machine.device.start_hinting().unwrap();
        // In the middle of work.
        for _ in 0..8 {
            machine.drivers[INFLATE].submit(&[&[0x55; 4096]], &[]);
            machine.drivers[STATISTICS].submit(&[&[0; 10]], &[]);
        }
        started.doorbells.iter().for_each(crate::Doorbell::ring);
        assert_eq!(started.stop().len(), 5);
        let status = machine.device.status();
        assert_eq!((status.target, status.actual, status.has_driver), (1 << 20, 0, false), "round {round}");
        assert_eq!((status.sample, status.hints), (None, HintStatus::default()));
        assert_eq!(machine.config(), [256, 0, 1, 0]);
        machine = Machine { memory: ram(), ..machine };
        machine.drivers = Machine::on(Arc::clone(&machine.memory)).drivers;
    }
}

#[test]
fn queues_are_found_by_a_driver_that_does_not_count_missing_ones() {
    let mut machine = Machine::new();
    machine.fill();
    // Reports are queue 3 where there are no hints.
    machine.drivers.truncate(4);
    let started = machine.start(STATS_VQ | PAGE_REPORTING);
    machine.drivers[3]
        .set_descriptor(0, virtio_queue::desc::split::Descriptor::new(address(THIRD), 4096, 2, 0));
    machine.drivers[3].make_available(0);
    started.doorbells[3].ring();
    assert_eq!(started.wait_used(&mut machine.drivers[3], 1), [Used { head: 0, written: 0 }]);
    assert!(!machine.is_filled(address(THIRD)) && machine.is_filled(address(THIRD + 1)));
}
