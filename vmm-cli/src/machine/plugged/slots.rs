//! `Slots`: what it takes to change the devices of the PCI bus, and to tell the guest.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};

use vmm_core::deferred;
use vmm_core::irq::{IrqRouter, TriggeredBy};
use vmm_devices::acpi::{GenericEvents, HotplugSlots};
use vmm_devices::pci::{Host, PciAddress, PciRoot, RootError};
use vmm_devices::virtio::VirtioDevice;

use super::Plugged;
use super::state::Rest;
use crate::config::{OtherFiles, VmConfig};
use crate::control::devices::DeviceError;
use crate::machine::layout::EVENTS_LINE;
use crate::machine::virtio::VirtioDevices;

/// What it takes to change the devices of a bus.
pub(super) struct Slots {
    pub(super) plugged: Weak<Plugged>,
    pub(super) registers: Arc<HotplugSlots>,
    pub(super) root: Arc<PciRoot>,
    host: Host,
    router: IrqRouter,
    pub(super) virtio: VirtioDevices,
    pub(super) config: VmConfig,
    pub(super) others: OtherFiles,
}

/// The parts of a machine from which devices are made.
pub(in crate::machine) struct Parts {
    pub(in crate::machine) root: Arc<PciRoot>,
    pub(in crate::machine) host: Host,
    pub(in crate::machine) router: IrqRouter,
    pub(in crate::machine) virtio: VirtioDevices,
    pub(in crate::machine) events: Arc<GenericEvents>,
    pub(in crate::machine) config: VmConfig,
}

impl Slots {
    pub(super) fn new(parts: Parts, plugged: Weak<Plugged>) -> Self {
        let Parts { root, host, router, virtio, events, config } = parts;
        let (poster, of) = (host.poster.clone(), plugged.clone());
        let eject = move |slot| {
            let plugged = of.clone();
            let (completer, access) = deferred();
            let given_back = move || {
                if let Some(plugged) = plugged.upgrade() {
                    plugged.eject(slot, completer);
                }
            };
            // Refused: the guest has asked for too much, and keeps what is in the slot.
            poster.post(given_back).ok().map(|()| access)
        };
        let registers = Arc::new(HotplugSlots::new(events, eject));
        let others = config.other_files();
        Self { plugged, registers, root, host, router, virtio, config, others }
    }

    /// Whether the guest has the interrupt of the events open.
    pub(super) fn is_heard(&self) -> bool {
        !self.router.pin_masked(EVENTS_LINE).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot tell whether the guest listens to hot-plug events");
            false
        })
    }

    /// Puts `device` on the bus at `address`, with what it is to a driver and who triggers its interrupts.
    pub(super) fn put(
        &self,
        device: Arc<dyn VirtioDevice>,
        named: (&'static str, TriggeredBy),
        address: PciAddress,
    ) -> Result<(), DeviceError> {
        let function = self.virtio.function(named, device, &self.host, &self.router)?;
        let root = Arc::clone(&self.root);
        self.change(move || root.insert_at(address, function))?
            .recv()
            // Dropped: the machine ends.
            .map_err(|_| DeviceError::Stopping)?
            .map_err(|error| DeviceError::Host { message: error.to_string() })
    }

    /// Has `change` made by the thread for changes; what it has come to is received.
    fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Receiver<T>, DeviceError> {
        let (sender, made) = channel();
        // Nobody waits any more: not an error.
        let post = move || drop(sender.send(change()));
        self.host.poster.post(post).map_err(|error| DeviceError::Host { message: error.to_string() })?;
        Ok(made)
    }

    /// Takes what is at `address` off the bus, the device `number` of `plugged` if it is one, and drops `done`.
    pub(super) fn take(
        &self,
        plugged: &Arc<Plugged>,
        address: PciAddress,
        number: Option<u64>,
        done: impl Send + 'static,
    ) {
        let plugged = Arc::clone(plugged);
        let end = move |removed: Result<(), RootError>| {
            // Refused: there is nothing, or it goes already.
            if let (Ok(()), Some(number)) = (removed, number) {
                plugged.gone(number, Rest::Nothing);
            }
            drop(done);
        };
        if let Err(error) = self.root.remove_later(address, &self.host.poster, end) {
            tracing::warn!(%error, %address, "a device stays until the end of the machine");
        }
    }
}
