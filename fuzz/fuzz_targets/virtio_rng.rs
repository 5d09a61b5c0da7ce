//! The entropy device with a driver that breaks its ring.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vmm_core::VmEvents;
use vmm_devices::Worker;
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::rng::Rng;
use vmm_devices::virtio::testing::{Driver, Request, Started, Used};

mod rings;
use rings::{Input, Subject};

struct Entropy(Rng);

static DEVICE: LazyLock<Entropy> = LazyLock::new(|| {
    let events = VmEvents::new().expect("a descriptor");
    Entropy(Rng::new(Arc::new(Worker::spawn(&vmm_devices::calls::VIRTIO, events).expect("a thread"))))
});

impl Subject for Entropy {
    const QUEUES: usize = 1;

    fn request(driver: &mut Driver, _: usize, input: &mut Input<'_>) -> Request {
        let lengths = [0, 1].map(|_| u32::from(input.word() % 2048));
        driver.submit(&[], &lengths)
    }

    fn ensure_served(&self, started: &Started, drivers: &mut [Driver]) {
        let request = drivers[0].submit(&[], &[64]);
        started.doorbells[0].ring();
        let used = started.wait_used(&mut drivers[0], 1);
        assert_eq!(used, [Used { head: request.head.into(), written: 64 }]);
        assert_ne!(drivers[0].read(request.writable[0].0, 64), [0; 64]);
    }

    fn device(&self) -> &dyn VirtioDevice {
        &self.0
    }
}

fuzz_target!(|bytes: &[u8]| rings::play(&*DEVICE, bytes));
