//! The console with drivers and hosts that behave and others that do not.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use virtio_queue::desc::split::Descriptor;
use vmm_core::VmEvents;
use vmm_memory::AddressSpace;

use super::*;
use crate::Worker;
use crate::virtio::VirtioDevice;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use crate::virtio::testing::{Driver, RAM, Started, Used, ram};

/// A writer into a vector that others see.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Machine {
    device: Console,
    output: Output,
    drained: Receiver<()>,
    memory: Arc<AddressSpace>,
    receive: Driver,
    transmit: Driver,
}

impl Machine {
    fn new() -> Self {
        let worker = Arc::new(Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap());
        let (output, (sender, drained)) = (Output::default(), channel());
        let sender: Mutex<Sender<()>> = Mutex::new(sender);
        let on_drained = Box::new(move || sender.lock().unwrap().send(()).unwrap());
        let memory = ram();
        Self {
            device: Console::new(worker, Box::new(output.clone()), on_drained),
            output,
            drained,
            receive: Driver::new(&memory, 0, 16, 0x1_0000),
            transmit: Driver::new(&memory, 1, 16, 0x9_0000),
            memory,
        }
    }

    fn start(&self, features: u64) -> Started {
        Started::new(&self.device, &self.memory, &[&self.receive, &self.transmit], features).unwrap()
    }
}

#[test]
fn what_the_guest_writes_comes_out_whole_and_in_order() {
    for features in [0, EVENT_IDX | INDIRECT_DESC] {
        let mut machine = Machine::new();
        let started = machine.start(features);
        let mut expected: Vec<u8> = Vec::new();
        for round in 0..50_usize {
            let text: Vec<u8> = (0..round * 97).map(|byte| (byte * 31 + round) as u8).collect();
            let (head, tail) = text.split_at(text.len() / 3);
            expected.extend(&text);
            machine.transmit.submit(&[head, tail], &[]);
            started.doorbells[1].ring();
            assert_eq!(started.wait_used(&mut machine.transmit, 1)[0].written, 0);
        }
        assert!(*machine.output.0.lock().unwrap() == expected);
    }
}

#[test]
fn fault_b9_a_long_output_is_written_in_pieces_and_input_goes_on_beside_it() {
    let mut machine = Machine::new();
    let started = machine.start(0);
    let long = RAM[2].size as u32;
    let first = Descriptor::new(RAM[2].start, long, 1, 1);
    machine.transmit.set_descriptor(0, first);
    machine.transmit.set_descriptor(1, Descriptor::new(RAM[2].start, long, 0, 0));
    machine.transmit.make_available(0);
    machine.receive.submit(&[], &[8]);
    started.doorbells[1].ring();
    assert_eq!(machine.device.input(b"key"), 3);
    assert_eq!(started.wait_used(&mut machine.receive, 1), [Used { head: 0, written: 3 }]);
    started.wait_used(&mut machine.transmit, 1);
    assert_eq!(machine.output.0.lock().unwrap().len(), 2 * long as usize);
}

#[test]
fn input_reaches_the_guest_in_the_buffers_that_it_lends() {
    let mut machine = Machine::new();
    // Before there is a driver.
    assert_eq!(machine.device.input(b"early "), 6);
    let started = machine.start(EVENT_IDX);
    let requests = [4, 100, 0, 100].map(|room| machine.receive.submit(&[], &[room]));
    started.doorbells[0].ring();
    let used = started.wait_used(&mut machine.receive, 2);
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [4, 2]);
    machine.drained.recv().unwrap();
    assert_eq!(machine.device.input(b"late"), 4);
    // The buffer without room comes back empty, and the input goes into the next.
    let used = started.wait_used(&mut machine.receive, 2);
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [0, 4]);
    let read = |index: usize, length| machine.receive.read(requests[index].writable[0].0, length);
    assert_eq!([read(0, 4), read(1, 2), read(3, 4)].concat(), b"early late");
}

#[test]
fn fault_b13_a_flood_of_input_is_bounded_and_goes_on_when_the_guest_reads() {
    let mut machine = Machine::new();
    let started = machine.start(0);
    let flood = vec![b'x'; 3 * FIFO];
    assert_eq!((machine.device.input(&flood), machine.device.input(&flood)), (FIFO, 0));
    machine.receive.submit(&[], &[FIFO as u32]);
    started.doorbells[0].ring();
    assert_eq!(started.wait_used(&mut machine.receive, 1)[0].written, FIFO as u32);
    machine.drained.recv().unwrap();
    assert_eq!(machine.device.input(&flood), FIFO);
    assert!(machine.drained.try_recv().is_err());
}

#[test]
fn fault_a11_a_guest_that_lends_no_buffer_gets_its_input_when_it_does() {
    let mut machine = Machine::new();
    let started = machine.start(EVENT_IDX);
    assert_eq!(machine.device.input(b"wait"), 4);
    // The worker has looked, found no buffer, and asked for a notification.
    machine.transmit.submit(&[b"x"], &[]);
    started.doorbells[1].ring();
    started.wait_used(&mut machine.transmit, 1);
    let before = machine.receive.available_index();
    machine.receive.submit(&[], &[8]);
    if machine.receive.must_notify(before, true) {
        started.doorbells[0].ring();
    }
    assert_eq!(started.wait_used(&mut machine.receive, 1)[0].written, 4);
}

#[test]
fn the_size_is_in_the_configuration_and_a_new_one_is_an_interrupt() {
    let machine = Machine::new();
    let config = || {
        let mut data = [0; 8];
        machine.device.read_config(0, &mut data);
        data
    };
    machine.device.resize(80, 25);
    assert_eq!(config(), [80, 0, 25, 0, 0, 0, 0, 0]);
    let started = machine.start(0);
    // A driver may look at it only if it is told to.
    started.interrupts.wait_for_config();
    let before = started.status.generation();
    machine.device.resize(80, 25);
    assert_eq!(started.status.generation(), before);
    machine.device.resize(0x1234, 50);
    started.interrupts.wait_for_config();
    assert_eq!((config(), started.status.generation()), ([0x34, 0x12, 50, 0, 0, 0, 0, 0], before + 1));
    let status = started.status.clone();
    assert_eq!(started.stop().len(), 2);
    machine.device.resize(1, 1);
    assert_eq!(status.generation(), before + 1, "no interrupt for a driver that is gone");
}

#[test]
fn fault_b6_a_reset_in_the_middle_of_output_and_input_begins_anew() {
    for _ in 0..100 {
        let mut machine = Machine::new();
        let started = machine.start(0);
        (0..8).for_each(|_| drop(machine.transmit.submit(&[&[b'y'; 5000]], &[])));
        (0..4).for_each(|_| drop(machine.receive.submit(&[], &[16])));
        started.doorbells[1].ring();
        machine.device.input(b"typed");
        assert_eq!(started.stop().len(), 2);
        let written = machine.output.0.lock().unwrap().len();
        std::thread::yield_now();
        assert_eq!(machine.output.0.lock().unwrap().len(), written, "written after the stop");
    }
}
