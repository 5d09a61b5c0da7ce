//! The entropy device with drivers that behave and drivers that do not.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vmm_core::VmEvents;

use super::*;
use crate::Worker;
use crate::virtio::VirtioDevice;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use crate::virtio::testing::{Driver, RAM, Started, Used, WRITE, ram};

const SIZE: u16 = 16;

fn device() -> Rng {
    Rng::new(Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap()))
}

#[test]
fn a_request_is_filled_with_bytes_that_differ_from_the_next() {
    for features in [0, EVENT_IDX | INDIRECT_DESC] {
        let (device, memory) = (device(), ram());
        let mut driver = Driver::new(&memory, 0, SIZE, 0x1_0000);
        let started = Started::new(&device, &memory, &[&driver], features).unwrap();
        let mut seen = Vec::new();
        for _ in 0..20 {
            let request = driver.submit(&[], &[32, 0, 32]);
            started.doorbells[0].ring();
            let used = started.wait_used(&mut driver, 1);
            assert_eq!(used, [Used { head: request.head.into(), written: 64 }]);
            seen.extend([request.writable[0].0, request.writable[2].0].map(|at| driver.read(at, 32)));
        }
        seen.sort();
        seen.dedup();
        // 32 bytes are the same twice, or all zeros, once in 2^250 times.
        assert_eq!(seen.len(), 40);
    }
}

#[test]
fn fault_b9_a_request_gets_a_bounded_number_of_bytes() {
    let (device, memory) = (device(), ram());
    let mut driver = Driver::new(&memory, 0, SIZE, 0x1_0000);
    let started = Started::new(&device, &memory, &[&driver], 0).unwrap();
    let length = RAM[2].size as u32;
    driver.write(RAM[2].start, &vec![0; RAM[2].size as usize]);
    driver.set_descriptor(0, Descriptor::new(RAM[2].start, length, WRITE, 0));
    driver.make_available(0);
    started.doorbells[0].ring();
    assert_eq!(started.wait_used(&mut driver, 1), [Used { head: 0, written: REQUEST as u32 }]);
    let beyond = driver.read(RAM[2].start + REQUEST as u64, 0x1000);
    assert!(beyond.iter().all(|byte| *byte == 0));
}

#[test]
fn fault_a6_a_request_without_room_comes_back_empty() {
    let (device, memory) = (device(), ram());
    let mut driver = Driver::new(&memory, 0, SIZE, 0x1_0000);
    let started = Started::new(&device, &memory, &[&driver], 0).unwrap();
    for (readable, writable, written) in
        [(&[b"seed".as_slice()][..], &[][..], 0), (&[], &[0], 0), (&[b"seed"], &[8], 8)]
    {
        let head = driver.submit(readable, writable).head.into();
        started.doorbells[0].ring();
        assert_eq!(started.wait_used(&mut driver, 1), [Used { head, written }]);
    }
    assert!(!started.needs_reset());
}

#[test]
fn fault_b2_there_is_no_configuration() {
    let device = device();
    let mut data = [0; 8];
    device.write_config(0, &[1; 8]);
    device.read_config(0, &mut data);
    assert_eq!((data, device.device_type()), ([0; 8], 4));
}
