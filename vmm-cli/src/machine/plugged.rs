//! `Plugged`: the devices of a machine that its guest finds, and how they come and go while it runs
//! (docs/adr/0013-slots-are-asked-for-and-given-back.md).
//!
//! The bus is changed on the thread for changes, and there alone. Whoever adds or removes a device waits on a thread of his
//! own, without the lock. A guest that gives a slot back posts that and sleeps until it is done.

mod disks;
mod nets;
mod slots;
mod state;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vmm_core::irq::TriggeredBy;
use vmm_devices::acpi::HotplugSlots;
use vmm_devices::pci::PciAddress;
use vmm_devices::virtio::VirtioDevice;

use crate::config::DeviceId;
use crate::control::devices::{
    Added, DeviceControl, DeviceError, DeviceState, DeviceStatus, NewDevice, Removal,
};
use crate::control::roles::Given;
use crate::disks::{Disk, Disks};
use crate::nets::{Card, Nets, Nic};
pub(super) use slots::Parts;
use slots::Slots;
pub(super) use state::{Behind, Device, PluggedDisk, PluggedNet};
use state::{Rest, State};

/// What a disk is to a driver, and a network device.
pub(super) const DISK: &str = "virtio-blk";
pub(super) const NET: &str = "virtio-net";

/// What is behind the devices of all lives of a machine that can be removed.
pub(super) struct Backing {
    pub(super) disks: Arc<Disks>,
    pub(super) nets: Arc<Nets>,
}

impl Backing {
    fn add(&self, behind: &Behind) {
        match behind {
            Behind::Disk(PluggedDisk { disk, .. }) => self.disks.add(Arc::clone(disk)),
            Behind::Net(PluggedNet { nic, .. }) => self.nets.add(Arc::clone(nic)),
        }
    }

    /// The guest is asked to give the device `id` back.
    fn leaves(&self, id: &DeviceId) {
        self.disks.leaves(id);
        self.nets.leaves(id);
    }

    /// Keeps what is behind `id` no more. It goes when what is returned is dropped.
    fn remove(&self, id: &DeviceId) -> (Option<Arc<Disk>>, Option<Arc<Nic>>) {
        (self.disks.remove(id), self.nets.remove(id))
    }
}

/// The devices of a machine.
pub(super) struct Plugged {
    state: Mutex<State>,
    /// A device has gone, or is not held any more, or the machine ends.
    news: Condvar,
    backing: Backing,
    /// Absent without a PCI bus.
    slots: Option<Slots>,
}

impl Plugged {
    /// With `devices`; with a PCI bus, of whose machine these are `parts`.
    pub(super) fn new(devices: Vec<Device>, backing: Backing, parts: Option<Parts>) -> Arc<Self> {
        Arc::new_cyclic(|plugged: &Weak<Self>| {
            let state = Mutex::new(State::new(devices));
            let slots = parts.map(|parts| Slots::new(parts, plugged.clone()));
            Self { state, news: Condvar::new(), backing, slots }
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

    /// Keeps a name and a slot for a device to come.
    fn reserve(&self, slots: &Slots, new: &NewDevice) -> Result<Reserved<'_>, DeviceError> {
        let (name, id, of_place): (_, _, fn(_) -> _) = match new {
            NewDevice::Disk(disk) => (DISK, &disk.id, DeviceId::of_disk),
            NewDevice::Net(net) => (NET, &net.id, DeviceId::of_net),
        };
        let free = slots.root.free_devices();
        let mut state = self.lock();
        if state.ended {
            return Err(DeviceError::Stopping);
        }
        let id = match id {
            Some(id) if state.device(id).is_some() => return Err(DeviceError::IdTaken { id: id.clone() }),
            Some(id) => id.clone(),
            None => state.free_id(of_place),
        };
        let address = state.free_slot(free).ok_or(DeviceError::NoSlot)?;
        state.last = address.device();
        let device = Device::new(id.to_string(), name, Some(address), None);
        state.add(Device { state: DeviceState::Coming, ..device });
        Ok(Reserved { plugged: self, id, address })
    }

    /// The guest gives `slot` back. Called on the thread for changes. `done` is dropped when the slot is empty.
    fn eject(self: &Arc<Self>, slot: u8, done: impl Send + 'static) {
        let (Some(slots), Some(address)) = (&self.slots, PciAddress::new(slot, 0)) else { return };
        let mut state = self.lock();
        let leaving = state.removable_in(slot).map(|device| {
            device.state = DeviceState::Leaving;
            // Absent: it is being taken apart.
            (device.number, device.behind.as_ref().map(|behind| behind.id().clone()))
        });
        if leaving.is_none() && (state.is_taken(slot) || slot == 0) {
            return;
        }
        drop(state);
        // Without a device there is nothing, or what is left of one that was taken away.
        let number = leaving.map(|(number, id)| {
            id.iter().for_each(|id| self.backing.leaves(id));
            number
        });
        slots.take(self, address, number, done);
    }

    /// The device `number` has gone, and left `rest` in its slot. Nothing else is left when those who wait are told. Does not wait for
    /// who works on it: that may need the calling thread.
    fn gone(&self, number: u64, rest: Rest) {
        let mut state = self.lock();
        let device = state.devices.iter_mut().find(|device| device.number == number);
        let behind = device.and_then(|device| {
            device.gone = Some(device.gone.map_or(rest, |before| before.min(rest)));
            device.behind.take()
        });
        drop(state);
        if let Some(behind) = behind {
            let kept = self.backing.remove(behind.id());
            // Its threads end, and its image or interface is closed here, and not under the lock.
            drop((behind, kept));
        }
        self.finish(number);
    }

    /// Forgets the device `number`, if it has gone and nobody works on it any more; who waits for that is told.
    fn finish(&self, number: u64) {
        let mut state = self.lock();
        let over = state.devices.iter_mut().find(|device| device.number == number && device.holders == 0);
        let over = over.and_then(|device| Some((device.gone.take()?, device.address?.device())));
        drop(state);
        let Some((rest, slot)) = over else { return };
        match (rest, self.registers()) {
            (_, None) => {}
            (Rest::Nothing, Some(registers)) => registers.forget(slot),
            (Rest::Husk, Some(registers)) => registers.ask(slot),
        }
        self.lock().devices.retain(|device| device.number != number);
        self.news.notify_all();
    }

    /// Takes what is behind the device in `slot` away from a guest that has it. The guest is told when nothing of it is left; what
    /// fails every request, or has a link that is down, stays in the slot until it gives that back.
    fn take_away(&self, slots: &Slots, slot: u8) {
        let mut state = self.lock();
        // Absent: it goes already.
        let behind = state.removable_in(slot).and_then(|device| Some((device.number, device.behind.take()?)));
        drop(state);
        let Some((number, behind)) = behind else { return };
        let kept = self.backing.remove(behind.id());
        let plugged = slots.plugged.clone();
        let gone = move || {
            if let Some(plugged) = plugged.upgrade() {
                plugged.gone(number, Rest::Husk);
            }
        };
        match behind {
            Behind::Disk(PluggedDisk { disk, block }) => {
                drop((disk, kept));
                block.lose_storage(gone);
            }
            Behind::Net(PluggedNet { nic, net }) => {
                drop((nic, kept));
                net.lose_link();
                gone();
            }
        }
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
        drop(state);
        self.backing.leaves(&removal.id);
        Ok((number, slot))
    }
}

/// A name and a slot. Dropped, they are free.
struct Reserved<'a> {
    plugged: &'a Plugged,
    id: DeviceId,
    address: PciAddress,
}

impl Reserved<'_> {
    /// Has the device known as that with this card, which nobody else has.
    fn claim(&self, card: &Card) -> Result<(), DeviceError> {
        let mut state = self.plugged.lock();
        state.check_card(Some(&card.interface), Some(card.mac))?;
        let own = state.devices.iter_mut().filter(|device| device.address == Some(self.address));
        own.for_each(|device| device.card = Some(card.clone()));
        Ok(())
    }

    /// The device has the slot now.
    fn plug(self, behind: Behind) -> Option<DeviceStatus> {
        self.plugged.backing.add(&behind);
        let mut state = self.plugged.lock();
        let at = state.devices.iter().position(|device| device.address == Some(self.address))?;
        let device = &mut state.devices[at];
        (device.state, device.behind) = (DeviceState::Plugged, Some(behind));
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

impl DeviceControl for Plugged {
    fn list(&self) -> Vec<DeviceStatus> {
        let state = self.lock();
        state.devices.iter().map(|device| state.status(device)).collect()
    }

    fn add(&self, new: &NewDevice, given: Given) -> Result<Added, DeviceError> {
        let slots = self.slots()?;
        let reserved = self.reserve(slots, new)?;
        let (behind, device, named): (_, Arc<dyn VirtioDevice>, _) = match new {
            NewDevice::Disk(config) => {
                let disk = disks::adopt(config, given.disk, slots, &reserved)?;
                let block = Arc::new(disk.device(&slots.virtio.events)?);
                let plugged = PluggedDisk { disk, block: Arc::clone(&block) };
                (Behind::Disk(plugged), block, (DISK, TriggeredBy::UserSpace))
            }
            NewDevice::Net(config) => {
                let nic = nets::adopt(config, given.net, &reserved)?;
                let net = Arc::new(nic.device(&slots.virtio.events, &slots.virtio.vhost)?);
                let named = (NET, nic.triggered_by());
                (Behind::Net(PluggedNet { nic, net: Arc::clone(&net) }), net, named)
            }
        };
        let address = reserved.address;
        slots.put(device, named, address)?;
        let device = reserved.plug(behind).ok_or(DeviceError::Stopping)?;
        slots.registers.added(address.device());
        Ok(Added { device, notified: slots.is_heard() })
    }

    fn remove(&self, removal: &Removal) -> Result<(), DeviceError> {
        let slots = self.slots()?;
        let (number, slot) = self.leaves(removal)?;
        if removal.force {
            self.take_away(slots, slot);
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
