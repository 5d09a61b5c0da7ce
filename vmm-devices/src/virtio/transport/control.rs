//! `Control`: a device behind its registers: it starts when the driver is ready, and stops when the driver resets it.
//!
//! A transport decodes addresses and calls this. Starting and stopping are done outside the lock of the registers, so that other
//! vCPUs read them meanwhile; a reset ends on whatever thread the device stops.
//!
//! Lock order: `running`, in it `state`. Devices are started and stopped under `running`, which only writes to the status and to
//! the enabling or reset of a queue take; the answer of a device that has stopped takes `state` alone.

use std::sync::{Arc, Mutex};

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
    running: Mutex<Option<Box<dyn Running>>>,
    shared: Arc<Shared>,
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
        let registers = Registers::new(device.features(), device.queue_sizes());
        let status = DeviceStatus::new(name, Arc::clone(&interrupts));
        let state = Mutex::new(State { registers, waiting: Vec::new() });
        let shared = Arc::new(Shared { status, state });
        let doorbells = doorbells.into();
        Self { device, memory, interrupts, doorbells, running: Mutex::new(None), shared }
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
                *running = self.start(features, &queues);
            }
            StatusChange::Reset if under_way => {}
            StatusChange::Reset => {
                drop(state);
                let shared = Arc::clone(&self.shared);
                match running.take() {
                    Some(device) => device.stop(Box::new(move |_| shared.reset())),
                    None => shared.reset(),
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

    /// The driver enables the selected queue.
    pub fn enable_queue(&self) {
        let mut running = lock(&self.running);
        let (setup, features) =
            self.with_registers(|registers| (registers.enable_queue(), registers.accepted()));
        let Some(setup) = setup else { return };
        let Some(device) = running.as_mut().and_then(|device| device.queue_reset()) else { return };
        if let Err(error) = self.start_queue(device, features, &setup) {
            self.shared.status.set_needs_reset(&*error);
        }
    }

    /// The driver resets the selected queue.
    pub fn reset_queue(&self) {
        let mut running = lock(&self.running);
        let Some(index) = self.with_registers(Registers::reset_queue) else { return };
        let shared = Arc::clone(&self.shared);
        let done = Box::new(move |_| lock(&shared.state).registers.queue_was_reset(index));
        let device = running.as_mut().and_then(|device| device.queue_reset());
        if !device.is_some_and(|device| device.stop_queue(index, done)) {
            self.with_registers(|registers| registers.queue_was_reset(index));
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
    ) -> Result<(), Box<dyn std::error::Error>> {
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
    /// The device has stopped: the registers are as in the beginning, and whoever waits goes on.
    fn reset(&self) {
        let mut state = lock(&self.state);
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
        let running = lock(&self.running).take();
        drop(running);
    }
}
