//! `VirtioDevices`: the virtio devices of a machine that is being built, and where its guest finds them.

use std::sync::Arc;
use vmm_devices::calls::VIRTIO;

use anyhow::anyhow;
use vmm_core::VmEvents;
use vmm_core::irq::{IrqRouter, IrqTrigger, TriggeredBy};
use vmm_core::seam::DoorbellFds;
use vmm_devices::Worker;
use vmm_devices::pci::{Function, Host};
use vmm_devices::virtio::VirtioDevice;
use vmm_devices::virtio::transport::pci::{self, PciSetup};
use vmm_devices::virtio::transport::{MmioSetup, VirtioMmio};
use vmm_devices::virtio::vhost::VhostMemory;
use vmm_memory::MemoryReader;

use super::layout::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_LINES, VIRTIO_MMIO_STRIDE};
use crate::outcome::Failure;

/// Where a device in MMIO space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmioPlace {
    /// Its first guest-physical address.
    pub(crate) base: u64,
    /// Its irqchip pin.
    pub(crate) line: u32,
}

/// What devices get of their machine, and the places that are taken.
pub(super) struct VirtioDevices {
    pub(super) memory: MemoryReader,
    /// The same for devices whose queues the host's kernel serves.
    pub(super) vhost: Arc<VhostMemory>,
    /// KVM's ioeventfds, where there are some.
    pub(super) doorbells: Option<Arc<dyn DoorbellFds>>,
    pub(super) events: VmEvents,
    places: Vec<MmioPlace>,
    worker: Option<Arc<Worker>>,
}

impl VirtioDevices {
    /// None so far.
    pub(super) fn new(
        memory: MemoryReader,
        vhost: Arc<VhostMemory>,
        doorbells: Option<Arc<dyn DoorbellFds>>,
        events: VmEvents,
    ) -> Self {
        Self { memory, vhost, doorbells, events, places: Vec::new(), worker: None }
    }

    /// The places that are taken, for the ACPI tables.
    pub(super) fn places(&self) -> &[MmioPlace] {
        &self.places
    }

    /// The thread that serves devices which never wait; started for the first of them.
    pub(super) fn worker(&mut self) -> Result<Arc<Worker>, Failure> {
        if let Some(worker) = &self.worker {
            return Ok(Arc::clone(worker));
        }
        let worker = Worker::spawn(&VIRTIO, self.events.clone()).map_err(Failure::host_cannot)?;
        Ok(Arc::clone(self.worker.insert(Arc::new(worker))))
    }

    /// The next free place.
    pub(super) fn take_place(&mut self) -> Result<MmioPlace, Failure> {
        let taken = self.places.len();
        let Some(line) = VIRTIO_MMIO_LINES.clone().nth(taken) else {
            return Err(Failure::bad_input(anyhow!("a machine has at most {taken} virtio-mmio devices")));
        };
        let place = MmioPlace { base: VIRTIO_MMIO_BASE + taken as u64 * VIRTIO_MMIO_STRIDE, line };
        self.places.push(place);
        Ok(place)
    }

    /// Makes the PCI function of `device`, with vectors of `router`, which are triggered as is said.
    pub(super) fn function(
        &self,
        (name, by): (&'static str, TriggeredBy),
        device: Arc<dyn VirtioDevice>,
        host: &Host,
        router: &IrqRouter,
    ) -> Result<Function, Failure> {
        let vectors = router.msix_table(name, pci::vectors(&*device), by);
        let vectors = vectors.map_err(Failure::host_cannot)?;
        let (memory, doorbells) = (self.memory.clone(), self.doorbells.clone());
        let setup = PciSetup { name, host: host.clone(), memory, vectors, doorbells };
        pci::function(device, setup).map_err(Failure::host_cannot)
    }

    /// Puts `device` at `place`.
    pub(super) fn make(
        &self,
        name: &'static str,
        device: Arc<dyn VirtioDevice>,
        place: MmioPlace,
        trigger: IrqTrigger,
    ) -> Result<VirtioMmio, Failure> {
        let (memory, doorbells) = (self.memory.clone(), self.doorbells.clone());
        let setup = MmioSetup { name, base: place.base, memory, trigger, doorbells };
        VirtioMmio::new(device, setup).map_err(Failure::host_cannot)
    }
}
