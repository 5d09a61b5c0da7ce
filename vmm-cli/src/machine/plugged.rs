//! `Plugged`: the devices of a machine that its guest finds, and how they come and go while it runs
//! ([ADR 0013](../../../docs/adr/0013-slots-are-asked-for-and-given-back.md)).
//!
//! The bus is changed on the thread for changes, and there alone. Whoever adds or removes a device waits on a thread of his
//! own, without the lock. A guest that gives a slot back posts that and sleeps until it is done.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_core::deferred;
use vmm_core::irq::IrqRouter;
use vmm_devices::acpi::{GenericEvents, HotplugSlots};
use vmm_devices::pci::{Host, PciAddress, PciRoot, RootError};
use vmm_devices::virtio::block::ImageError;

use super::layout::EVENTS_LINE;
use super::virtio::VirtioDevices;
use crate::config::{DiskConfig, VmConfig, disk};
use crate::control::devices::{Added, DeviceControl, DeviceError, DeviceState, DeviceStatus, Removal};
use crate::disks::{self, Disk, Disks};
use crate::outcome::Failure;

/// What a disk is to a driver.
pub(super) const DISK: &str = "virtio-blk";

/// One device.
pub(super) struct Device {
    /// Of all that there ever were; another one may have its name and its slot later.
    number: u64,
    id: String,
    /// What it is to a driver.
    name: &'static str,
    /// Where it is, on a PCI bus.
    address: Option<PciAddress>,
    state: DeviceState,
    /// What is behind a disk that is plugged.
    disk: Option<Arc<Disk>>,
}

impl Device {
    /// One that the guest has from the beginning.
    pub(super) fn new(
        id: String,
        name: &'static str,
        address: Option<PciAddress>,
        disk: Option<Arc<Disk>>,
    ) -> Self {
        Self { number: 0, id, name, address, state: DeviceState::Plugged, disk }
    }

    fn is_in(&self, slot: u8) -> bool {
        self.address.is_some_and(|address| address.device() == slot)
    }
}

/// What is known of the devices.
#[derive(Default)]
struct State {
    devices: Vec<Device>,
    /// The number of the newest device, and the slot of the last one that was added.
    newest: u64,
    last: u8,
    /// Slots, a bit each, whose device was taken away while the guest had it: they are nobody's until it gives them back.
    orphans: u32,
    /// The machine ends.
    ended: bool,
}

/// The devices of a machine.
pub(super) struct Plugged {
    state: Mutex<State>,
    /// A device has gone, or the machine ends.
    news: Condvar,
    disks: Arc<Disks>,
    /// Absent without a PCI bus.
    slots: Option<Slots>,
}

/// What it takes to change the devices of a bus.
struct Slots {
    plugged: Weak<Plugged>,
    registers: Arc<HotplugSlots>,
    root: Arc<PciRoot>,
    host: Host,
    router: IrqRouter,
    virtio: VirtioDevices,
    config: VmConfig,
}

/// The parts of a machine from which devices are made.
pub(super) struct Parts {
    pub(super) root: Arc<PciRoot>,
    pub(super) host: Host,
    pub(super) router: IrqRouter,
    pub(super) virtio: VirtioDevices,
    pub(super) events: Arc<GenericEvents>,
    pub(super) config: VmConfig,
}

impl Plugged {
    /// With `devices`; with a PCI bus, of whose machine these are `parts`.
    pub(super) fn new(devices: Vec<Device>, disks: Arc<Disks>, parts: Option<Parts>) -> Arc<Self> {
        Arc::new_cyclic(|plugged: &Weak<Self>| {
            let numbered = (0..).zip(devices).map(|(number, device)| Device { number, ..device });
            let devices: Vec<_> = numbered.collect();
            let state = Mutex::new(State { newest: devices.len() as u64, devices, ..State::default() });
            let slots = parts.map(|parts| Slots::new(parts, plugged.clone()));
            Self { state, news: Condvar::new(), disks, slots }
        })
    }

    /// The registers for the guest, with a PCI bus.
    pub(super) fn registers(&self) -> Option<&Arc<HotplugSlots>> {
        self.slots.as_ref().map(|slots| &slots.registers)
    }

    /// The machine ends: nobody waits for its guest any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> Result<&Slots, DeviceError> {
        self.slots.as_ref().ok_or(DeviceError::NoBus)
    }

    /// Keeps a name and a slot for a disk to come.
    fn reserve(&self, slots: &Slots, disk: &DiskConfig) -> Result<Reserved<'_>, DeviceError> {
        let free = slots.root.free_devices();
        let mut state = self.lock();
        if state.ended {
            return Err(DeviceError::Stopping);
        }
        let id = match &disk.id {
            Some(id) if state.device(id).is_some() => return Err(DeviceError::IdTaken { id: id.clone() }),
            Some(id) => id.clone(),
            None => state.free_id(),
        };
        let address = state.free_slot(free).ok_or(DeviceError::NoSlot)?;
        (state.last, state.newest) = (address.device(), state.newest + 1);
        let device = Device { number: state.newest, ..Device::new(id.clone(), DISK, Some(address), None) };
        state.devices.push(Device { state: DeviceState::Coming, ..device });
        Ok(Reserved { plugged: self, id, address })
    }

    /// The guest gives `slot` back. Called on the thread for changes. `done` is dropped when the slot is empty.
    fn eject(self: &Arc<Self>, slot: u8, done: impl Send + 'static) {
        let Some(slots) = &self.slots else { return };
        let mut state = self.lock();
        // If its device was taken away before, there is nothing in it.
        state.orphans &= !bit(slot);
        let Some(device) = state.removable_in(slot) else { return };
        device.state = DeviceState::Leaving;
        let (id, address) = (device.id.clone(), PciAddress::new(slot, 0));
        drop(state);
        self.disks.leaves(&id);
        if let Some(address) = address {
            slots.take(self, address, move |_| drop(done));
        }
    }

    /// The device at `address` is off the bus. Nothing of it is left when those who wait are told.
    fn gone(&self, address: PciAddress) {
        let is_it = |device: &Device| device.address == Some(address);
        let mut state = self.lock();
        let device = state.devices.iter_mut().find(|device| is_it(device));
        let (id, disk) = device.map(|device| (device.id.clone(), device.disk.take())).unwrap_or_default();
        drop(state);
        // Its image is closed here, and not under the lock.
        drop((disk, self.disks.remove(&id)));
        if let Some(slots) = &self.slots {
            slots.registers.forget(address.device());
        }
        self.lock().devices.retain(|device| !is_it(device));
        self.news.notify_all();
    }

    /// Waits until the device with this number has gone; returns whether it has within `limit`.
    fn wait_for_end(&self, number: u64, limit: Duration) -> Result<bool, DeviceError> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while state.devices.iter().any(|device| device.number == number) {
            if state.ended {
                return Err(DeviceError::Stopping);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            (state, _) = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(true)
    }

    /// Marks the device `removal` names as one that leaves; returns its number and its slot.
    fn leaves(&self, removal: &Removal) -> Result<(u64, u8), DeviceError> {
        let id = || removal.id.clone();
        let mut state = self.lock();
        if state.ended {
            return Err(DeviceError::Stopping);
        }
        let device = state.device(&removal.id).ok_or_else(|| DeviceError::UnknownId { id: id() })?;
        let not_removable = || DeviceError::NotRemovable { id: id() };
        let slot = device.address.ok_or_else(not_removable)?.device();
        let device = state.removable_in(slot).ok_or_else(not_removable)?;
        device.state = DeviceState::Leaving;
        let number = device.number;
        if removal.force {
            state.orphans |= bit(slot);
        }
        drop(state);
        self.disks.leaves(&removal.id);
        Ok((number, slot))
    }

    /// The device of `slot` was taken away if it `was_there`, and given back by the guest if not. Whether the guest still has
    /// to give the slot back.
    fn is_orphan(&self, slot: u8, was_there: bool) -> bool {
        let mut state = self.lock();
        if !was_there {
            state.orphans &= !bit(slot);
        }
        state.orphans & bit(slot) != 0
    }
}

/// The bit of a slot.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

impl State {
    fn device(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    /// A name as a disk has it that was given none.
    fn free_id(&self) -> String {
        let mut ids = (0..).map(disk::default_id);
        ids.find(|id| self.device(id).is_none()).unwrap_or_default()
    }

    /// A slot that nobody has, among `free` ones, a bit each: the next one after the last. A guest that is late with what it
    /// was told of a slot does not do it to the next device then.
    fn free_slot(&self, free: u32) -> Option<PciAddress> {
        let is_free = |slot: u8| {
            free & !self.orphans & bit(slot) != 0 && !self.devices.iter().any(|device| device.is_in(slot))
        };
        let slot = (self.last + 1..32).chain(1..=self.last).find(|slot| is_free(*slot))?;
        PciAddress::new(slot, 0)
    }

    /// Whether there is a disk in `slot`, alone.
    fn is_removable(&self, slot: u8) -> bool {
        let mut devices = self.devices.iter().filter(|device| device.is_in(slot));
        devices.next().is_some_and(|device| device.disk.is_some()) && devices.next().is_none()
    }

    /// The disk in `slot`, alone there.
    fn removable_in(&mut self, slot: u8) -> Option<&mut Device> {
        if !self.is_removable(slot) {
            return None;
        }
        self.devices.iter_mut().find(|device| device.is_in(slot))
    }

    fn status(&self, device: &Device) -> DeviceStatus {
        DeviceStatus {
            id: device.id.clone(),
            device: device.name.to_owned(),
            slot: device.address.map(|address| address.to_string()),
            state: device.state,
            removable: device.address.is_some_and(|address| self.is_removable(address.device())),
            path: device.disk.as_ref().map(|disk| disk.config().path.clone()),
        }
    }
}

/// A name and a slot. Dropped, they are free.
struct Reserved<'a> {
    plugged: &'a Plugged,
    id: String,
    address: PciAddress,
}

impl Reserved<'_> {
    /// `disk` has the slot now.
    fn plug(self, disk: Arc<Disk>) -> Option<DeviceStatus> {
        self.plugged.disks.add(Arc::clone(&disk));
        let mut state = self.plugged.lock();
        let at = state.devices.iter().position(|device| device.address == Some(self.address))?;
        let device = &mut state.devices[at];
        (device.state, device.disk) = (DeviceState::Plugged, Some(disk));
        Some(state.status(&state.devices[at]))
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let is_kept =
            |device: &Device| device.address != Some(self.address) || device.state != DeviceState::Coming;
        self.plugged.lock().devices.retain(is_kept);
    }
}

impl Slots {
    fn new(parts: Parts, plugged: Weak<Plugged>) -> Self {
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
        Self { plugged, registers, root, host, router, virtio, config }
    }

    /// Whether the guest has the interrupt of the events open.
    fn is_heard(&self) -> bool {
        !self.router.pin_masked(EVENTS_LINE).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot tell whether the guest listens to hot-plug events");
            false
        })
    }

    /// Puts the device of `disk` on the bus at `address`.
    fn put(&self, disk: &Disk, address: PciAddress) -> Result<(), DeviceError> {
        let device = Arc::new(disk.device(&self.virtio.events).map_err(host_error)?);
        let function = self.virtio.function(DISK, device, &self.host, &self.router).map_err(host_error)?;
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

    /// Takes the disk at `address` off the bus, tells `plugged`, and calls `done` with whether it was there.
    fn take(&self, plugged: &Arc<Plugged>, address: PciAddress, done: impl FnOnce(bool) + Send + 'static) {
        let plugged = Arc::clone(plugged);
        let end = move |removed: Result<(), RootError>| {
            if removed.is_ok() {
                plugged.gone(address);
            }
            done(removed.is_ok());
        };
        if let Err(error) = self.root.remove_later(address, &self.host.poster, end) {
            tracing::warn!(%error, %address, "a device stays until the end of the machine");
        }
    }

    /// Takes the disk in `slot` away from a guest that has it. Its driver is told afterwards, by the request to give the slot
    /// back.
    fn take_away(&self, slot: u8) {
        let (Some(plugged), Some(address)) = (self.plugged.upgrade(), PciAddress::new(slot, 0)) else {
            return;
        };
        let (registers, of) = (Arc::clone(&self.registers), Arc::clone(&plugged));
        self.take(&plugged, address, move |was_there| {
            if of.is_orphan(slot, was_there) {
                registers.ask(slot);
            }
        });
    }
}

impl DeviceControl for Plugged {
    fn list(&self) -> Vec<DeviceStatus> {
        let state = self.lock();
        state.devices.iter().map(|device| state.status(device)).collect()
    }

    fn add_disk(&self, config: &DiskConfig) -> Result<Added, DeviceError> {
        let slots = self.slots()?;
        let reserved = self.reserve(slots, config)?;
        let bad_disk = |error: anyhow::Error| DeviceError::BadDisk { message: format!("{error:#}") };
        slots.config.check_new_disk(config).map_err(|error| bad_disk(error.into()))?;
        let image = disks::open_image(config).map_err(image_error)?;
        let disk = Disk::new(image, config, reserved.id.clone(), slots.config.cpu.count);
        let disk = Arc::new(disk.map_err(host_error)?);
        let address = reserved.address;
        slots.put(&disk, address)?;
        let device = reserved.plug(disk).ok_or(DeviceError::Stopping)?;
        slots.registers.added(address.device());
        Ok(Added { device, notified: slots.is_heard() })
    }

    fn remove(&self, removal: &Removal) -> Result<(), DeviceError> {
        let slots = self.slots()?;
        let (number, slot) = self.leaves(removal)?;
        if removal.force {
            slots.take_away(slot);
        } else {
            slots.registers.ask(slot);
        }
        if self.wait_for_end(number, removal.limit)? {
            return Ok(());
        }
        Err(DeviceError::NotEjected {
            id: removal.id.clone(),
            limit: removal.limit,
            listens: slots.is_heard(),
        })
    }
}

fn host_error(failure: Failure) -> DeviceError {
    DeviceError::Host { message: failure.to_string() }
}

fn image_error(error: ImageError) -> DeviceError {
    let is_in_use = matches!(error, ImageError::InUse { .. });
    let message = format!("{:#}", anyhow::Error::new(error));
    if is_in_use { DeviceError::InUse { message } } else { DeviceError::BadDisk { message } }
}
