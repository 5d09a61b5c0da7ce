//! A device that says itself when it and its queues have stopped.

use std::sync::mpsc::channel;

use super::*;
use crate::virtio::features::{RING_RESET, VERSION_1};
use crate::virtio::testing::{CountedInterrupts, Driver, ram};
use crate::virtio::transport::state::QueueArea;
use crate::virtio::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use crate::virtio::{ActivateError, QueueStopped, Stopped};

/// Those who wait for an end.
#[derive(Default)]
struct Ends {
    device: Mutex<Option<Stopped>>,
    queues: Mutex<Vec<QueueStopped>>,
}

impl Ends {
    fn end_device(&self) {
        let stopped = lock(&self.device).take().unwrap();
        stopped(Vec::new());
    }

    fn end_queue(&self) {
        let stopped = lock(&self.queues).remove(0);
        stopped(QueueState::new(0, 16));
    }
}

struct Held(Arc<Ends>);

impl VirtioDevice for Held {
    fn device_type(&self) -> u32 {
        4
    }

    fn features(&self) -> u64 {
        RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16; 2]
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn write_config(&self, _: u64, _: &[u8]) {}

    fn start(&self, _: Activation) -> Result<Box<dyn Running>, ActivateError> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

impl Running for Held {
    fn stop(self: Box<Self>, done: Stopped) {
        *lock(&self.0.device) = Some(done);
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }
}

impl QueueReset for Held {
    fn stop_queue(&mut self, _: usize, done: QueueStopped) -> bool {
        lock(&self.0.queues).push(done);
        true
    }

    fn start_queue(&mut self, _: ActiveQueue) -> Result<(), ActivateError> {
        Ok(())
    }
}

/// A device with both of its queues in use.
fn live() -> (Control, Arc<Ends>) {
    let (ends, memory) = (Arc::new(Ends::default()), ram());
    let doorbells = (0..2).map(|_| Doorbell::new(None, 0).unwrap()).collect();
    let reader = MemoryReader::new(Arc::clone(&memory));
    let device = Arc::new(Held(Arc::clone(&ends)));
    let control = Control::new("held", device, reader, doorbells, Arc::new(CountedInterrupts::new()));
    control.set_status(ACKNOWLEDGE);
    control.set_status(ACKNOWLEDGE | DRIVER);
    for page in 0..2 {
        control.with_registers(|registers| {
            registers.select_accepted(page);
            registers.accept(((VERSION_1 | RING_RESET) >> (32 * page)) as u32);
        });
    }
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    control.set_status(ready);
    for index in 0..2 {
        let setup = Driver::new(&memory, index, 16, 0x4_0000 * index as u64).setup();
        control.with_registers(|registers| {
            registers.select_queue(index as u32);
            registers.set_queue_size(16);
            registers.set_queue_address(QueueArea::Descriptors, false, setup.descriptor_table as u32);
            registers.set_queue_address(QueueArea::Available, false, setup.available_ring as u32);
            registers.set_queue_address(QueueArea::Used, false, setup.used_ring as u32);
        });
        control.enable_queue();
    }
    control.set_status(ready | DRIVER_OK);
    assert_eq!(control.status(), ready | DRIVER_OK);
    (control, ends)
}

fn reset_queue(control: &Control, index: u32) {
    control.with_registers(|registers| registers.select_queue(index));
    control.reset_queue();
}

#[test]
fn fault_b6_a_reset_ends_when_the_queues_that_were_reset_before_it_have_stopped_too() {
    let (control, ends) = live();
    reset_queue(&control, 0);
    reset_queue(&control, 1);
    control.set_status(0);
    let (sender, ended) = channel();
    control.reset_end().unwrap().on_complete(move || sender.send(()).unwrap());
    ends.end_queue();
    ends.end_device();
    assert!(control.with_registers(|registers| registers.is_resetting()) && ended.try_recv().is_err());
    assert_ne!(control.status(), 0);
    ends.end_queue();
    assert_eq!((ended.try_recv(), control.status()), (Ok(()), 0));
}

#[test]
fn fault_b6_a_reset_ends_with_the_device_when_the_queues_were_faster() {
    let (control, ends) = live();
    reset_queue(&control, 1);
    control.set_status(0);
    ends.end_queue();
    assert_ne!(control.status(), 0);
    ends.end_device();
    assert!(control.status() == 0 && control.reset_end().is_none());
    // Nothing of it is left for the next one.
    control.set_status(ACKNOWLEDGE);
    assert_eq!(control.status(), ACKNOWLEDGE);
}

#[test]
fn a_queue_that_is_reset_by_itself_resets_nothing_else() {
    let (control, ends) = live();
    reset_queue(&control, 0);
    assert!(control.with_registers(|registers| registers.is_any_queue_resetting()));
    ends.end_queue();
    assert!(!control.with_registers(|registers| registers.is_any_queue_resetting()));
    assert_eq!(control.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}
