//! The console with a driver that breaks its rings.

#![no_main]

use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::console::Console;
use vmm_devices::virtio::testing::{Driver, Request, Started};

mod rings;
use rings::{Input, Subject};

const TRANSMIT: usize = 1;

/// What the guest has written.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Terminal {
    device: Console,
    output: Output,
}

static DEVICE: LazyLock<Terminal> = LazyLock::new(|| {
    let events = VmEvents::new().expect("a descriptor");
    let worker = Arc::new(Worker::spawn(&vmm_devices::calls::VIRTIO, events).expect("a thread"));
    let output = Output::default();
    let device = Console::new(worker, Box::new(output.clone()), Box::new(|| ()));
    Terminal { device, output }
});

impl Subject for Terminal {
    const QUEUES: usize = 2;

    fn request(driver: &mut Driver, queue: usize, input: &mut Input<'_>) -> Request {
        let length = input.word() % 4096;
        if queue == TRANSMIT {
            driver.submit(&[&vec![input.byte(); usize::from(length)]], &[])
        } else {
            driver.submit(&[], &[length.into()])
        }
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        self.output.0.lock().expect("no panic").clear();
        drivers[TRANSMIT].submit(&[b"served"], &[]);
        started.doorbells[TRANSMIT].ring();
        started.wait_used(&mut drivers[TRANSMIT], 1);
        assert_eq!(*self.output.0.lock().expect("no panic"), b"served");
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.device
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
