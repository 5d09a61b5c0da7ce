//! Queues on a worker: served, broken, stopped, reset one by one.

use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_core::VmEvents;
use vmm_memory::AddressSpace;

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use crate::virtio::queue::Chain;
use crate::virtio::testing::{Driver, Started, Used, ram};

const SIZE: u16 = 16;

fn driver(memory: &Arc<AddressSpace>, index: usize) -> Driver {
    Driver::new(memory, index, SIZE, 0x1_0000 + 0x8_0000 * index as u64)
}

/// Gives each request back with its length as the answer. A request that begins with `panic` is a bug, and one that begins
/// with `hold` is answered when the next one comes.
struct Echo {
    batch: usize,
    calls: Sender<usize>,
    held: Option<Chain>,
}

impl ServeQueue for Echo {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        let mut served = 0;
        while served < self.batch {
            let Some(chain) = queue.pop(memory)? else { break };
            let mut text = [0; 5];
            let _ = chain.readable().read(memory, &mut text);
            assert_ne!(&text, b"panic", "a bug of the device");
            if let Some(held) = self.held.take() {
                queue.push(memory, held, 0)?;
            }
            if &text == b"hold!" {
                self.held = Some(chain);
            } else {
                let length = chain.writable().len();
                queue.push(memory, chain, length)?;
            }
            served += 1;
        }
        self.calls.send(served).unwrap();
        Ok(if served < self.batch { Batch::Empty } else { Batch::Full })
    }
}

struct Device {
    worker: Arc<Worker>,
    batch: usize,
    calls: Sender<usize>,
}

impl VirtioDevice for Device {
    fn device_type(&self) -> u32 {
        0
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError> {
        let (batch, calls) = (self.batch, self.calls.clone());
        let serve = move |_| Box::new(Echo { batch, calls: calls.clone(), held: None }) as _;
        Ok(Box::new(QueueWorkers::start(&self.worker, activation, serve)?))
    }
}

fn device(batch: usize) -> (Device, Receiver<usize>) {
    let worker = Worker::spawn(&crate::calls::SELFTEST, VmEvents::new().unwrap()).unwrap();
    let (calls, called) = channel();
    (Device { worker: Arc::new(worker), batch, calls }, called)
}

#[test]
fn every_request_is_served_with_as_few_rings_as_the_driver_may_give() {
    for features in [0, EVENT_IDX, EVENT_IDX | INDIRECT_DESC] {
        let (device, _called) = device(4);
        let memory = ram();
        let mut driver = driver(&memory, 0);
        let started = Started::new(&device, &memory, &[&driver], features).unwrap();
        for round in 0..500_u32 {
            let before = driver.available_index();
            let count = round as usize % 7 + 1;
            let requests: Vec<_> = (0..count).map(|_| driver.submit(&[b"x"], &[round])).collect();
            if driver.must_notify(before, features & EVENT_IDX != 0) {
                started.doorbells[0].ring();
            }
            for (request, used) in requests.iter().zip(started.wait_used(&mut driver, count)) {
                assert_eq!(used, Used { head: request.head.into(), written: round });
            }
        }
        assert!(!started.needs_reset());
        let [state] = started.stop()[..] else { panic!() };
        assert_eq!(state.next_available, driver.available_index());
    }
}

#[test]
fn fault_a10_a_storm_of_rings_is_bounded_work_and_starves_no_other_queue() {
    let (device, called) = device(1);
    let memory = ram();
    let (mut storm, mut quiet) = (driver(&memory, 0), driver(&memory, 1));
    let started = Started::new(&device, &memory, &[&storm, &quiet], 0).unwrap();
    (0..SIZE).for_each(|_| drop(storm.submit(&[b"x"], &[])));
    (0..10_000).for_each(|_| started.doorbells[0].ring());
    quiet.submit(&[b"y"], &[]);
    started.doorbells[1].ring();
    assert_eq!(started.wait_used(&mut quiet, 1).len(), 1);
    assert_eq!(started.wait_used(&mut storm, SIZE.into()).len(), usize::from(SIZE));
    (0..10_000).for_each(|_| started.doorbells[0].ring());
    assert_eq!(started.stop().len(), 2);
    assert!(called.try_iter().all(|served| served <= 1), "a batch is one request");
}

#[test]
fn fault_a1_a_driver_that_breaks_its_ring_loses_this_queue_until_a_reset() {
    let (device, called) = device(4);
    let memory = ram();
    let (broken, mut other) = (driver(&memory, 0), driver(&memory, 1));
    let started = Started::new(&device, &memory, &[&broken, &other], 0).unwrap();
    broken.set_available_index(SIZE + 1);
    started.doorbells[0].ring();
    started.interrupts.wait_for_config();
    assert!(started.needs_reset());
    // Neither what it mends nor what it rings is looked at.
    broken.set_available_index(0);
    (0..100).for_each(|_| started.doorbells[0].ring());
    other.submit(&[b"x"], &[]);
    started.doorbells[1].ring();
    assert_eq!(started.wait_used(&mut other, 1).len(), 1);
    let mut states = started.stop();
    states.sort_by_key(|state| state.index);
    assert_eq!(states.iter().map(|state| state.next_used).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(called.try_iter().sum::<usize>(), 1);
}

#[test]
fn what_was_used_before_a_broken_chain_is_told_to_the_driver() {
    let (device, _called) = device(4);
    let memory = ram();
    let mut driver = driver(&memory, 0);
    let started = Started::new(&device, &memory, &[&driver], 0).unwrap();
    driver.submit(&[b"x"], &[]);
    driver.make_available(u16::MAX);
    started.doorbells[0].ring();
    assert_eq!(started.wait_used(&mut driver, 1), [Used { head: 0, written: 0 }]);
    started.interrupts.wait_for_config();
    assert!(started.needs_reset());
}

#[test]
fn fault_d3_a_device_that_panics_needs_a_reset_and_still_stops() {
    let (device, _called) = device(4);
    let memory = ram();
    let (mut bug, mut other) = (driver(&memory, 0), driver(&memory, 1));
    let started = Started::new(&device, &memory, &[&bug, &other], 0).unwrap();
    bug.submit(&[b"panic"], &[]);
    started.doorbells[0].ring();
    started.interrupts.wait_for_config();
    assert!(started.needs_reset());
    other.submit(&[b"x"], &[]);
    started.doorbells[1].ring();
    assert_eq!(started.wait_used(&mut other, 1).len(), 1);
    assert_eq!(started.stop().len(), 2);
}

#[test]
fn fault_b6_a_stop_under_load_answers_once_and_nothing_is_touched_after_it() {
    let memory = ram();
    for round in 0..200_usize {
        let (device, _called) = device(1);
        let mut driver = driver(&memory, 0);
        let started = Started::new(&device, &memory, &[&driver], EVENT_IDX).unwrap();
        (0..SIZE).for_each(|_| drop(driver.submit(&[b"x"], &[])));
        started.doorbells[0].ring();
        started.wait_used(&mut driver, round % usize::from(SIZE));
        let doorbell = started.doorbells[0].eventfd();
        let [state] = started.stop()[..] else { panic!() };
        // What the device has said is what the driver sees, now and later.
        assert_eq!(driver.used_index(), state.next_used);
        doorbell.write(1).unwrap();
        // The next device goes on where this one was.
        let goes_on = Queue::new(&state, EVENT_IDX, &memory.memory()).unwrap();
        assert_eq!(goes_on.state(), state);
        // For the next round, as after a reset.
        let ring = driver.setup();
        driver.write(ring.available_ring, &[0; 4]);
        driver.write(ring.used_ring, &[0; 4]);
    }
}

#[test]
fn a_stop_inside_a_read_section_does_not_wait() {
    let (device, _called) = device(1);
    let memory = ram();
    let mut driver = driver(&memory, 0);
    let started = Started::new(&device, &memory, &[&driver], 0).unwrap();
    (0..SIZE).for_each(|_| drop(driver.submit(&[b"x"], &[])));
    started.doorbells[0].ring();
    let section = memory.memory();
    let (sender, stopped) = channel();
    started.running.stop(Box::new(move |states| sender.send(states).unwrap()));
    drop(section);
    assert_eq!(stopped.recv().unwrap().len(), 1);
}

#[test]
fn a_queue_that_was_stopped_can_be_started_again_beside_the_other() {
    let (device, _called) = device(4);
    let memory = ram();
    let (mut first, mut second) = (driver(&memory, 0), driver(&memory, 1));
    let mut started = Started::new(&device, &memory, &[&first, &second], 0).unwrap();
    first.submit(&[b"hold!"], &[]);
    started.doorbells[0].ring();
    let (sender, stopped) = channel();
    let queues = started.running.queue_reset().unwrap();
    assert!(queues.stop_queue(0, Box::new(move |state| sender.send(state).unwrap())));
    assert_eq!(stopped.recv().unwrap().index, 0);
    assert!(!queues.stop_queue(0, Box::new(|_| panic!("it does not run"))));
    second.submit(&[b"x"], &[]);
    started.doorbells[1].ring();
    assert_eq!(started.wait_used(&mut second, 1).len(), 1);

    let mut again = driver(&memory, 0);
    let setup = again.setup();
    again.write(setup.available_ring, &[0; 4]);
    again.write(setup.used_ring, &[0; 4]);
    let interrupt = QueueInterrupt::new(Arc::clone(&started.interrupts) as _, 0);
    let doorbell = started.doorbells[0].eventfd();
    let queue = ActiveQueue { index: 0, queue: again.queue(0), doorbell, interrupt };
    started.running.queue_reset().unwrap().start_queue(queue).unwrap();
    again.submit(&[b"x"], &[]);
    started.doorbells[0].ring();
    assert_eq!(started.wait_used(&mut again, 1).len(), 1);
    assert_eq!(started.stop().len(), 2);
}

#[test]
fn fault_c1_a_queue_that_the_worker_cannot_take_starts_nothing() {
    let (device, _called) = device(4);
    let memory = ram();
    let drivers = [driver(&memory, 0), driver(&memory, 1)];
    let started = Started::new(&device, &memory, &[&drivers[0]], 0).unwrap();
    // The same eventfd cannot be served twice by one worker.
    let queues = [0, 1].map(|index| ActiveQueue {
        index,
        queue: drivers[index].queue(0),
        doorbell: started.doorbells[0].eventfd(),
        interrupt: QueueInterrupt::new(Arc::clone(&started.interrupts) as _, index),
    });
    let activation = Activation {
        features: 0,
        memory: MemoryReader::new(Arc::clone(&memory)),
        queues: queues.into(),
        status: started.status.clone(),
    };
    let error = device.start(activation).err().unwrap();
    assert_eq!(error.to_string(), "cannot start the device test");
    assert_eq!(started.stop().len(), 1);
}
