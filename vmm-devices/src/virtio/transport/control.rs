//! `Control`: a device behind its registers: it starts when the driver is ready, and stops when the driver resets it.
//!
//! A transport decodes addresses and calls this. Starting and stopping are done outside the lock of the registers, so that other
//! vCPUs read them meanwhile; a reset ends on whatever thread the device stops.
//!
//! Lock order: `running`, in it `state`. Devices are started and stopped under `running`, which only writes to the status and to
//! the enabling or reset of a queue take; the answer of a device that has stopped takes `state` alone.

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_core::{Completer, Deferred, deferred};
use vmm_memory::{GuestMemory, MemoryReader};

use super::state::{Registers, StatusChange};
use super::status::NEEDS_RESET;
use crate::Doorbell;
use crate::sync::lock;
use crate::virtio::queue::{Queue, QueueState, SetupError};
use crate::virtio::{
    Activation, ActiveQueue, DeviceStatus, Interrupts, QueueInterrupt, QueueReset, Running, VirtioDevice,
};

/// The driver was ready before any queue was.
#[derive(Debug, thiserror::Error)]
#[error("the driver has enabled no queue")]
struct NoQueue;

/// The driver has the device work while its function may not access memory.
#[derive(Debug, thiserror::Error)]
#[error("the function is no bus master, and the device cannot access its queues")]
struct NoBusMaster;

/// The driver has set up a queue that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("queue {index}")]
struct BadQueue {
    index: usize,
    #[source]
    source: SetupError,
}

/// A device as a transport has it.
pub struct Control {
    device: Arc<dyn VirtioDevice>,
    memory: MemoryReader,
    interrupts: Arc<dyn Interrupts>,
    doorbells: Box<[Doorbell]>,
    running: Mutex<Run>,
    shared: Arc<Shared>,
}

struct Run {
    device: Option<Box<dyn Running>>,
    /// The device may access memory.
    is_bus_master: bool,
}

/// What the answer of a stopped device needs.
struct Shared {
    status: DeviceStatus,
    state: Mutex<State>,
}

struct State {
    registers: Registers,
    /// Accesses that end with the reset.
    waiting: Vec<Completer>,
    /// The device has stopped; the reset ends when no queue is being reset by itself any more.
    stopped: bool,
    /// The device stops as it may not access memory any more; a reset does not end before that.
    draining: bool,
}

impl Control {
    /// The device `name`, which reads `memory`. There is a doorbell for each of its queues.
    pub fn new(
        name: &'static str,
        device: Arc<dyn VirtioDevice>,
        memory: MemoryReader,
        doorbells: Vec<Doorbell>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Self {
        debug_assert_eq!(doorbells.len(), device.queue_sizes().len(), "a doorbell for each queue");
        let registers =
            Registers::new(device.features(), device.queue_sizes()).with_rings(device.ring_features());
        let status = DeviceStatus::new(name, Arc::clone(&interrupts));
        let state = Mutex::new(State { registers, waiting: Vec::new(), stopped: false, draining: false });
        let shared = Arc::new(Shared { status, state });
        let doorbells = doorbells.into();
        Self {
            device,
            memory,
            interrupts,
            doorbells,
            running: Mutex::new(Run { device: None, is_bus_master: true }),
            shared,
        }
    }

    /// The device type.
    #[must_use]
    pub fn device_type(&self) -> u32 {
        self.device.device_type()
    }

    /// Calls `f` with the registers. Neither the status is written in it nor are queues enabled or reset: that is what the
    /// methods here are for.
    pub fn with_registers<R>(&self, f: impl FnOnce(&mut Registers) -> R) -> R {
        f(&mut lock(&self.shared.state).registers)
    }

    /// The status as the driver reads it.
    #[must_use]
    pub fn status(&self) -> u8 {
        let needs_reset = if self.shared.status.needs_reset() { NEEDS_RESET } else { 0 };
        self.with_registers(|registers| registers.status()) | needs_reset
    }

    /// The driver writes the status. A reset may not have come to its end when this returns.
    pub fn set_status(&self, value: u8) {
        let mut running = lock(&self.running);
        let mut state = lock(&self.shared.state);
        let under_way = state.registers.is_resetting();
        match state.registers.set_status(value) {
            StatusChange::None => {}
            StatusChange::Start => {
                let features = state.registers.accepted();
                let queues: Vec<_> = state.registers.enabled().collect();
                drop(state);
                if running.is_bus_master {
                    running.device = self.start(features, &queues);
                } else {
                    self.shared.status.set_needs_reset(&NoBusMaster);
                }
            }
            StatusChange::Reset if under_way => {}
            StatusChange::Reset => {
                drop(state);
                let shared = Arc::clone(&self.shared);
                match running.device.take() {
                    Some(device) => device.stop(Box::new(move |_| shared.stopped())),
                    None => shared.stopped(),
                }
            }
        }
    }

    /// The end of the reset that is under way, for an access that ends with it.
    #[must_use]
    pub fn reset_end(&self) -> Option<Deferred> {
        let mut state = lock(&self.shared.state);
        if !state.registers.is_resetting() {
            return None;
        }
        let (completer, access) = deferred();
        state.waiting.push(completer);
        Some(access)
    }

    /// The device may access guest memory from now on, or may not. One that runs and may not any more stops, and needs a reset:
    /// `Some` is the end of its accesses. Until the first call it may.
    pub fn set_bus_master(&self, on: bool) -> Option<Deferred> {
        let mut running = lock(&self.running);
        running.is_bus_master = on;
        let device = running.device.take_if(|_| !on)?;
        lock(&self.shared.state).draining = true;
        self.shared.status.set_needs_reset(&NoBusMaster);
        let (completer, access) = deferred();
        let shared = Arc::clone(&self.shared);
        device.stop(Box::new(move |_| {
            shared.drained();
            completer.complete();
        }));
        Some(access)
    }

    /// The driver enables the selected queue.
    pub fn enable_queue(&self) {
        let mut running = lock(&self.running);
        let (setup, features) =
            self.with_registers(|registers| (registers.enable_queue(), registers.accepted()));
        let Some(setup) = setup else { return };
        let Some(device) = running.device.as_mut().and_then(|device| device.queue_reset()) else { return };
        if let Err(error) = self.start_queue(device, features, &setup) {
            self.shared.status.set_needs_reset(&*error);
        }
    }

    /// The driver resets the selected queue.
    pub fn reset_queue(&self) {
        let mut running = lock(&self.running);
        let Some(index) = self.with_registers(Registers::reset_queue) else { return };
        let shared = Arc::clone(&self.shared);
        let done = Box::new(move |_| shared.queue_was_reset(index));
        let device = running.device.as_mut().and_then(|device| device.queue_reset());
        if !device.is_some_and(|device| device.stop_queue(index, done)) {
            self.shared.queue_was_reset(index);
        }
    }

    /// The driver has given the interrupt of queue `index` another vector.
    pub fn interrupt_moved(&self, index: usize) {
        if let Some(device) = &mut lock(&self.running).device {
            device.interrupt_moved(index);
        }
    }

    /// The driver notifies queue `index`, and the host did not take it. Without such a queue nothing happens.
    #[inline]
    pub fn notify(&self, index: usize) {
        if let Some(doorbell) = self.doorbells.get(index) {
            doorbell.ring();
        }
    }

    /// The doorbells, by queue.
    #[must_use]
    pub fn doorbells(&self) -> &[Doorbell] {
        &self.doorbells
    }

    /// The driver reads the device's configuration.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    /// The driver writes the device's configuration.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// The transport has found what only a reset mends, and says so for the device.
    pub fn set_needs_reset(&self, reason: &dyn Error) {
        self.shared.status.set_needs_reset(reason);
    }

    /// Changes whenever the configuration has changed (section 2.5.1).
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.shared.status.generation()
    }

    /// Starts the device, or says why it cannot be.
    fn start(&self, features: u64, queues: &[QueueState]) -> Option<Box<dyn Running>> {
        let status = &self.shared.status;
        let memory = self.memory.load();
        let queues: Result<Vec<_>, _> =
            queues.iter().filter_map(|setup| self.active_queue(features, setup, &memory)).collect();
        drop(memory);
        let queues = match queues {
            Ok(queues) if queues.is_empty() => {
                status.set_needs_reset(&NoQueue);
                return None;
            }
            Ok(queues) => queues,
            Err(error) => {
                status.set_needs_reset(&error);
                return None;
            }
        };
        let activation = Activation { features, memory: self.memory.clone(), queues, status: status.clone() };
        match self.device.start(activation) {
            Ok(running) => Some(running),
            Err(error) => {
                status.set_needs_reset(&error);
                None
            }
        }
    }

    fn start_queue(
        &self,
        device: &mut dyn QueueReset,
        features: u64,
        setup: &QueueState,
    ) -> Result<(), Box<dyn Error>> {
        let memory = self.memory.load();
        if let Some(queue) = self.active_queue(features, setup, &memory) {
            device.start_queue(queue?)?;
        }
        Ok(())
    }

    /// The queue that the driver has set up, with its doorbell rung.
    fn active_queue(
        &self,
        features: u64,
        setup: &QueueState,
        memory: &GuestMemory,
    ) -> Option<Result<ActiveQueue, BadQueue>> {
        let index = setup.index;
        let doorbell = self.doorbells.get(index)?;
        let queue = Queue::new(setup, features, memory).map_err(|source| BadQueue { index, source });
        Some(queue.map(|queue| {
            doorbell.ring();
            let interrupt = QueueInterrupt::new(Arc::clone(&self.interrupts), index);
            ActiveQueue { index, queue, doorbell: doorbell.eventfd(), interrupt }
        }))
    }
}

impl Shared {
    /// The device has stopped, with the queues that were not stopped before it.
    fn stopped(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        self.end_reset(state);
    }

    /// The device has stopped that may not access memory any more.
    fn drained(&self) {
        let mut state = lock(&self.state);
        state.draining = false;
        self.end_reset(state);
    }

    /// Queue `index` has stopped by itself.
    fn queue_was_reset(&self, index: usize) {
        let mut state = lock(&self.state);
        state.registers.queue_was_reset(index);
        self.end_reset(state);
    }

    /// Once nothing of the device is left: the registers are as in the beginning, and whoever waits goes on.
    fn end_reset(&self, mut state: MutexGuard<'_, State>) {
        if !state.stopped || state.draining || state.registers.is_any_queue_resetting() {
            return;
        }
        state.stopped = false;
        self.status.reset();
        state.registers.reset();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Completer::complete);
    }
}

impl Drop for Control {
    /// The guest does not see it any more: nobody waits for the driver.
    fn drop(&mut self) {
        let running = lock(&self.running).device.take();
        drop(running);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
