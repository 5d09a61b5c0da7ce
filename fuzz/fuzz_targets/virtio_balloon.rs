//! The balloon with a driver that breaks its rings, and names pages as it likes.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::balloon::{Balloon, BalloonOptions, BalloonSettings, HintState, PAGE};
use vmm_devices::virtio::testing::{Driver, RAM, Request, Started, Used};

mod rings;
use rings::{Input, Subject};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTS: usize = 3;
const REPORTS: usize = 4;

/// The first page in which no rings are, and how many there are.
const FIRST: u32 = (RAM[2].start / PAGE) as u32;
const COUNT: u16 = (RAM[2].size / PAGE) as u16;

struct Memory(Balloon);

static DEVICE: LazyLock<Memory> = LazyLock::new(|| {
    let events = VmEvents::new().expect("a descriptor");
    let options = BalloonOptions {
        settings: BalloonSettings::new(1 << 20, Duration::from_millis(1)),
        deflate_on_oom: true,
        free_page_reporting: true,
        large_pages: true,
        most: 4 << 20,
    };
    Memory(Balloon::new(
        Arc::new(Worker::spawn(&vmm_devices::calls::VIRTIO, events).expect("a thread")),
        options,
    ))
});

/// Numbers of pages: in RAM, in the hole before it, or far beyond it.
fn pages(input: &mut Input<'_>) -> Vec<u8> {
    let count = input.byte() % 64;
    let page = |input: &mut Input<'_>| match input.byte() {
        0 => u32::MAX - u32::from(input.byte()),
        1 => FIRST - 1 - u32::from(input.byte()),
        _ => FIRST + u32::from(input.word() % COUNT),
    };
    (0..count).flat_map(|_| page(input).to_le_bytes()).collect()
}

impl Subject for Memory {
    const QUEUES: usize = 5;

    fn request(driver: &mut Driver, queue: usize, input: &mut Input<'_>) -> Request {
        match queue {
            INFLATE | DEFLATE => {
                let pages = pages(input);
                let (head, tail) = pages.split_at(usize::from(input.byte()).min(pages.len()));
                driver.submit(&[head, tail], &[])
            }
            STATISTICS => {
                let bytes: Vec<u8> = (0..input.byte() % 64).map(|_| input.byte()).collect();
                driver.submit(&[&bytes], &[])
            }
            HINTS if input.byte() & 1 == 0 => driver.submit(&[&input.word().to_le_bytes(), &[0, 0]], &[]),
            HINTS | REPORTS => driver.submit(&[], &[u32::from(input.word() % 4096)]),
            _ => unreachable!("no such queue"),
        }
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        drivers[INFLATE].write(RAM[2].start, &[0x5a; 2 * PAGE as usize]);
        let mut ask = |queue: usize, readable: &[&[u8]], writable: &[u32]| {
            let request = drivers[queue].submit(readable, writable);
            started.doorbells[queue].ring();
            let used = started.wait_used(&mut drivers[queue], 1);
            assert_eq!(used, [Used { head: request.head.into(), written: 0 }]);
        };
        ask(INFLATE, &[&FIRST.to_le_bytes()], &[]);
        ask(DEFLATE, &[&FIRST.to_le_bytes()], &[]);
        ask(STATISTICS, &[&[5, 0, 77, 0, 0, 0, 0, 0, 0, 0]], &[]);
        self.0.start_hinting().expect("a driver that hints");
        let mut config = [0; 4];
        self.0.read_config(8, &mut config);
        ask(HINTS, &[&config], &[]);
        ask(REPORTS, &[], &[64]);
        let status = self.0.status();
        assert_eq!(status.hints.state, HintState::Hinting);
        assert_eq!(status.sample.expect("statistics").statistics.total_bytes, Some(77));
        assert_eq!(drivers[INFLATE].read(RAM[2].start, PAGE as usize), [0; PAGE as usize]);
        assert_eq!(drivers[INFLATE].read(RAM[2].start + PAGE, PAGE as usize), [0x5a; PAGE as usize]);
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.0
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
