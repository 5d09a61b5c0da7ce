//! `VirtioDevice`: a type of device, as a transport sees it, and what it gets when its driver is ready.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_core::LogLimit;
use vmm_memory::MemoryReader;
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Queue, QueueState};

/// A device behind a transport. Its methods are called by several vCPUs at a time.
pub trait VirtioDevice: Send + Sync {
    /// The device type of virtio 1.3, section 5.
    fn device_type(&self) -> u32;

    /// The feature bits of this type that it offers, and [`RING_RESET`](super::features::RING_RESET) if it can. The other
    /// bits of rings and transports are the transport's.
    fn features(&self) -> u64;

    /// The features of its rings that it offers, of [`OF_RINGS`](super::features::OF_RINGS): less only where who serves them has less.
    fn ring_features(&self) -> u64 {
        super::features::OF_RINGS
    }

    /// The largest size of each queue, a power of two each.
    fn queue_sizes(&self) -> &[u16];

    /// The driver reads the configuration. `data` is all zeros before the call, and stays so beyond the end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes the configuration. Beyond the end, and where it is read-only, nothing happens.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// The driver is ready: takes the queues and serves them until it is stopped. Called inside an access: it does not wait.
    ///
    /// # Errors
    /// The host does not give what it takes; the driver then finds DEVICE_NEEDS_RESET. Nothing touches guest memory any more: a
    /// device of which a part runs is none of these, it sets DEVICE_NEEDS_RESET itself, and the reset stops it.
    fn start(&self, activation: Activation) -> Result<Box<dyn Running>, ActivateError>;
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// The features that were negotiated.
    pub features: u64,
    /// Guest RAM.
    pub memory: MemoryReader,
    /// The queues that the driver has enabled, by index; at least one.
    pub queues: Vec<ActiveQueue>,
    /// What the device says about itself.
    pub status: DeviceStatus,
}

/// One queue, and what belongs to it.
pub struct ActiveQueue {
    /// Which one.
    pub index: usize,
    /// The rings.
    pub queue: Queue,
    /// Signalled by the driver, and once before the start, so that what is available already is served.
    pub doorbell: Arc<EventFd>,
    /// Tells the driver of used buffers.
    pub interrupt: QueueInterrupt,
}

/// What is called with the states of the queues when a device has stopped, on any thread.
pub type Stopped = Box<dyn FnOnce(Vec<QueueState>) + Send>;

/// What is called with the state of a queue when it has stopped, on any thread.
pub type QueueStopped = Box<dyn FnOnce(QueueState) + Send>;

/// A device that serves its queues. Dropped, it stops, and waits for that unless it is inside a read section.
pub trait Running: Send {
    /// Stops serving: requests in flight come to their end or are discarded. Does not wait: `done` is called when no guest
    /// memory is touched any more. It may be called before this returns.
    fn stop(self: Box<Self>, done: Stopped);

    /// What resets single queues, if the device offers [`RING_RESET`](super::features::RING_RESET).
    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        None
    }

    /// The interrupt of queue `index` leads elsewhere from now on. Called inside an access: it does not wait.
    fn interrupt_moved(&mut self, index: usize) {
        let _ = index;
    }
}

/// A running device whose queues stop and start one by one (virtio 1.3, section 2.6.1).
pub trait QueueReset {
    /// Stops queue `index`, as [`Running::stop`] does with all. `false`: it does not run, and `done` is dropped.
    fn stop_queue(&mut self, index: usize, done: QueueStopped) -> bool;

    /// Serves a queue again that was stopped.
    ///
    /// # Errors
    /// As [`VirtioDevice::start`].
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError>;
}

/// A device cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the device {device}")]
pub struct ActivateError {
    /// The device.
    pub device: &'static str,
    /// What the host did not give.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// How a transport interrupts its driver. No lock and no allocation, from any thread.
pub trait Interrupts: Send + Sync {
    /// Buffers of queue `index` were used.
    fn queue_used(&self, index: usize);
    /// What does the same when it is signalled, for a kernel that serves queue `index`; `None`: at the moment there is none, and
    /// [`queue_used`](Self::queue_used) has to be called.
    fn queue_eventfd(&self, index: usize) -> Option<EventFd> {
        let _ = index;
        None
    }
    /// The configuration has changed, or the device needs a reset.
    fn config_changed(&self);
    /// The device was reset: what is not acknowledged is forgotten.
    fn reset(&self);
}

/// Tells the driver of used buffers of one queue.
#[derive(Clone)]
pub struct QueueInterrupt {
    interrupts: Arc<dyn Interrupts>,
    index: usize,
}

impl QueueInterrupt {
    /// The interrupt of queue `index`.
    #[must_use]
    pub fn new(interrupts: Arc<dyn Interrupts>, index: usize) -> Self {
        Self { interrupts, index }
    }

    /// Interrupts. Whether the driver wants that, the [`Queue`] knows.
    pub fn trigger(&self) {
        self.interrupts.queue_used(self.index);
    }

    /// What interrupts when the kernel signals it, if there is such at the moment.
    #[must_use]
    pub fn eventfd(&self) -> Option<EventFd> {
        self.interrupts.queue_eventfd(self.index)
    }
}

struct Shared {
    name: &'static str,
    interrupts: Arc<dyn Interrupts>,
    /// Set by whoever finds it, cleared by a reset, when nobody is left who could set it for the time before.
    needs_reset: AtomicBool,
    generation: AtomicU32,
    /// How many change the configuration at this moment. Read by [`DeviceStatus::generation`].
    changing: AtomicU32,
    /// For drivers that reset and break the device over and over.
    log: LogLimit,
}

/// What a device says about itself to its driver. Clones speak for the same device.
#[derive(Clone)]
pub struct DeviceStatus(Arc<Shared>);

impl DeviceStatus {
    /// For the device `name`.
    #[must_use]
    pub fn new(name: &'static str, interrupts: Arc<dyn Interrupts>) -> Self {
        Self(Arc::new(Shared {
            name,
            interrupts,
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            changing: AtomicU32::new(0),
            log: LogLimit::default(),
        }))
    }

    /// The name of the device, for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The driver or the host has brought the device to where it can only be reset: sets DEVICE_NEEDS_RESET, interrupts,
    /// and says so in the log, at most once a reset (virtio 1.3, section 2.1.2).
    pub fn set_needs_reset(&self, reason: &dyn Error) {
        if self.0.needs_reset.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(left_out) = self.0.log.permit() {
            let (device, reason) = (self.0.name, Causes(reason));
            tracing::warn!(device, %reason, left_out, "a device needs a reset");
        }
        self.config_changed();
    }

    /// The configuration has changed: the driver is to read it again. To be called after the change.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::Release);
        self.0.interrupts.config_changed();
    }

    /// Changes the configuration by `change`, and tells the driver. One that reads in the middle of it a field in several
    /// pieces finds that the generation was another before and after.
    pub fn change_config(&self, change: impl FnOnce()) {
        self.0.changing.fetch_add(1, Ordering::AcqRel);
        change();
        self.0.generation.fetch_add(1, Ordering::Release);
        self.0.changing.fetch_sub(1, Ordering::Release);
        self.0.interrupts.config_changed();
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.0.needs_reset.load(Ordering::Acquire)
    }

    /// How often the configuration has changed (virtio 1.3, section 2.5.1). While it does, no two answers are the same: who has
    /// read what is new finds at least the beginning of the change.
    pub(super) fn generation(&self) -> u32 {
        if self.0.changing.load(Ordering::Acquire) == 0 {
            self.0.generation.load(Ordering::Acquire)
        } else {
            self.0.generation.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
        }
    }

    /// The device has stopped and was reset.
    pub(super) fn reset(&self) {
        self.0.needs_reset.store(false, Ordering::Release);
        self.0.interrupts.reset();
    }
}

/// An error and what led to it, in one line.
struct Causes<'a>(&'a dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.0;
        f.debug_struct("DeviceStatus")
            .field("name", &shared.name)
            .field("needs_reset", &shared.needs_reset)
            .finish()
    }
}

impl fmt::Debug for QueueInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueInterrupt").field("index", &self.index).finish()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::virtio::testing::CountedInterrupts;

    #[test]
    fn whoever_reads_in_the_middle_of_a_change_finds_another_generation_afterwards() {
        let status = DeviceStatus::new("test", Arc::new(CountedInterrupts::new()));
        let before = status.generation();
        assert_eq!(status.generation(), before);
        let mut seen = vec![before];
        status.change_config(|| seen.extend([status.generation(), status.generation()]));
        let after = status.generation();
        assert_eq!(status.generation(), after);
        seen.push(after);
        assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    }
}
