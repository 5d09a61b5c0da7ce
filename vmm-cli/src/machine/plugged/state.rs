//! `State`: which devices there are, where, and on which way: a plain value.

use std::sync::Arc;

use vmm_devices::pci::PciAddress;
use vmm_devices::virtio::block::Block;
use vmm_devices::virtio::net::Net;

use crate::config::{DeviceId, MacAddress};
use crate::control::devices::{DeviceError, DeviceState, DeviceStatus};
use crate::disks::Disk;
use crate::kept::Named;
use crate::nets::{Card, Nic};

/// What is behind a disk, and what its driver sees of it in this life of the machine.
pub(in crate::machine) struct PluggedDisk {
    pub(in crate::machine) disk: Arc<Disk>,
    pub(in crate::machine) block: Arc<Block>,
}

/// The same of a network device.
pub(in crate::machine) struct PluggedNet {
    pub(in crate::machine) nic: Arc<Nic>,
    pub(in crate::machine) net: Arc<Net>,
}

/// What is behind a device that can be removed.
pub(in crate::machine) enum Behind {
    Disk(PluggedDisk),
    Net(PluggedNet),
}

impl Behind {
    pub(super) fn id(&self) -> &DeviceId {
        match self {
            Self::Disk(PluggedDisk { disk, .. }) => disk.id(),
            Self::Net(PluggedNet { nic, .. }) => nic.id(),
        }
    }

    pub(super) fn disk(&self) -> Option<&PluggedDisk> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Net(_) => None,
        }
    }

    pub(super) fn net(&self) -> Option<&PluggedNet> {
        match self {
            Self::Net(net) => Some(net),
            Self::Disk(_) => None,
        }
    }
}

/// What is left in the slot of a device that has gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rest {
    /// The guest has given it back.
    Nothing,
    /// What fails every request; the guest is to give that back.
    Husk,
}

/// One device.
pub(in crate::machine) struct Device {
    /// Of all that there ever were; another one may have its name and its slot later.
    pub(super) number: u64,
    pub(super) id: String,
    /// What it is to a driver.
    pub(super) name: &'static str,
    /// Where it is, on a PCI bus.
    pub(super) address: Option<PciAddress>,
    pub(super) state: DeviceState,
    /// What is behind it, if it can be removed and is plugged.
    pub(super) behind: Option<Behind>,
    /// Of a network device: what no other one may have.
    pub(super) card: Option<Card>,
    /// How many work on that without the lock.
    pub(super) holders: usize,
    /// It has gone, but for those.
    pub(super) gone: Option<Rest>,
}

impl Device {
    /// One that the guest has from the beginning.
    pub(in crate::machine) fn new(
        id: String,
        name: &'static str,
        address: Option<PciAddress>,
        behind: Option<Behind>,
    ) -> Self {
        let card = behind.as_ref().and_then(Behind::net).map(|plugged| plugged.nic.card().clone());
        let state = DeviceState::Plugged;
        Self { number: 0, id, name, address, state, behind, card, holders: 0, gone: None }
    }

    pub(super) fn is_in(&self, slot: u8) -> bool {
        self.address.is_some_and(|address| address.device() == slot)
    }
}

/// The bit of a slot.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

/// What is known of the devices.
#[derive(Default)]
pub(super) struct State {
    pub(super) devices: Vec<Device>,
    /// How many there ever were.
    made: u64,
    /// The slot that was given out last.
    pub(super) last: u8,
    /// The machine ends.
    pub(super) ended: bool,
}

impl State {
    /// With what is there from the beginning.
    pub(super) fn new(devices: Vec<Device>) -> Self {
        let mut state = Self::default();
        devices.into_iter().for_each(|device| state.add(device));
        state
    }

    /// There is one more, with a number that no other one has.
    pub(super) fn add(&mut self, device: Device) {
        self.devices.push(Device { number: self.made, ..device });
        self.made += 1;
    }

    pub(super) fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id.as_str())
    }

    /// Those that are disks, and plugged.
    pub(super) fn disks(&self) -> impl Iterator<Item = &PluggedDisk> {
        self.devices.iter().filter_map(|device| device.behind.as_ref()?.disk())
    }

    /// Those that are network devices, and plugged.
    pub(super) fn nets(&self) -> impl Iterator<Item = &PluggedNet> {
        self.devices.iter().filter_map(|device| device.behind.as_ref()?.net())
    }

    /// The first name that nobody has of those by place, for a device that was given none.
    pub(super) fn free_id(&self, of_place: fn(usize) -> DeviceId) -> DeviceId {
        let most = self.devices.len();
        let mut ids = (0..most).map(of_place);
        ids.find(|id| self.device(id).is_none()).unwrap_or_else(|| of_place(most))
    }

    /// A slot that nobody has, among `free` ones, a bit each: the next one after the last. A guest that is late with what it
    /// was told of a slot does not do it to the next device then.
    pub(super) fn free_slot(&self, free: u32) -> Option<PciAddress> {
        let is_free = |slot: u8| free & bit(slot) != 0 && !self.is_taken(slot);
        let slot = (self.last + 1..32).chain(1..=self.last).find(|slot| is_free(*slot))?;
        PciAddress::new(slot, 0)
    }

    /// Whether another network device has this interface or this address of the guest's.
    pub(super) fn check_card(
        &self,
        interface: Option<&str>,
        mac: Option<MacAddress>,
    ) -> Result<(), DeviceError> {
        for (id, card) in self.devices.iter().filter_map(|device| Some((&device.id, device.card.as_ref()?))) {
            if Some(card.interface.as_str()) == interface {
                let message = format!("{id} of this machine has the interface {}", card.interface);
                return Err(DeviceError::InUse { message });
            }
            if Some(card.mac) == mac {
                let mac = card.mac;
                let message =
                    format!("{id} of this machine has the address {mac}: leave it out, or take another one");
                return Err(DeviceError::BadNet { message });
            }
        }
        Ok(())
    }

    /// Whether any device is in `slot`.
    pub(super) fn is_taken(&self, slot: u8) -> bool {
        self.devices.iter().any(|device| device.is_in(slot))
    }

    /// Whether what is in `slot` can be removed and is alone there; also what is being taken apart.
    fn is_removable(&self, slot: u8) -> bool {
        let mut devices = self.devices.iter().filter(|device| device.is_in(slot));
        let is_one = |device: &Device| device.behind.is_some() || device.state == DeviceState::Leaving;
        devices.next().is_some_and(is_one) && devices.next().is_none()
    }

    /// The device in `slot`, if it can be removed.
    pub(super) fn removable_in(&mut self, slot: u8) -> Option<&mut Device> {
        if !self.is_removable(slot) {
            return None;
        }
        self.devices.iter_mut().find(|device| device.is_in(slot))
    }

    pub(super) fn status(&self, device: &Device) -> DeviceStatus {
        let disk = device.behind.as_ref().and_then(Behind::disk);
        DeviceStatus {
            id: device.id.clone(),
            device: device.name.to_owned(),
            slot: device.address.map(|address| address.to_string()),
            state: device.state,
            removable: device.address.is_some_and(|address| self.is_removable(address.device())),
            path: disk.and_then(|plugged| plugged.disk.config().path.clone()),
            interface: device.card.as_ref().map(|card| card.interface.clone()),
            mac: device.card.as_ref().map(|card| card.mac.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_core::VmEvents;

    use super::*;
    use crate::config::DiskConfig;
    use crate::disks;
    use crate::machine::plugged::DISK;

    fn disk(id: &str) -> Behind {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let config: DiskConfig =
            format!("path={},format=raw,engine=threads", file.path().display()).parse().unwrap();
        let backend = disks::Images::open(&config).unwrap().backend().unwrap();
        let disk = Disk::new(backend, &config, id.parse().unwrap(), 1).unwrap();
        let block = disk.device(&VmEvents::new().unwrap()).unwrap();
        Behind::Disk(PluggedDisk { disk: Arc::new(disk), block: Arc::new(block) })
    }

    fn at(slot: u8, function: u8) -> Option<PciAddress> {
        PciAddress::new(slot, function)
    }

    #[test]
    fn a_device_with_something_behind_it_alone_in_its_slot_can_be_removed_and_nothing_else() {
        let mut state = State::new(vec![
            Device::new("a".into(), DISK, at(1, 0), Some(disk("a"))),
            Device::new("b".into(), DISK, at(2, 0), Some(disk("b"))),
            Device::new("entropy".into(), "virtio-rng", at(3, 0), None),
            Device::new("c".into(), DISK, at(2, 1), Some(disk("c"))),
            Device::new("d".into(), DISK, None, Some(disk("d"))),
        ]);
        assert_eq!(state.removable_in(1).map(|device| device.id.clone()), Some("a".into()));
        assert!((0..32).filter(|slot| *slot != 1).all(|slot| state.removable_in(slot).is_none()));
        let removable: Vec<_> = state.devices.iter().map(|device| state.status(device).removable).collect();
        assert_eq!(removable, [true, false, false, false, false]);
    }

    #[test]
    fn no_two_network_devices_have_an_interface_or_an_address() {
        let mac = |text: &str| Some(text.parse().unwrap());
        let card = Card { interface: "tap0".into(), mac: mac("02:00:00:00:00:01").unwrap() };
        let device = Device::new("lan".into(), "virtio-net", at(1, 0), None);
        let state = State::new(vec![Device { card: Some(card), ..device }]);
        assert_eq!(state.check_card(Some("tap1"), None), Ok(()));
        assert_eq!(state.check_card(None, mac("02:00:00:00:00:02")), Ok(()));
        let taken = state.check_card(Some("tap0"), None).unwrap_err();
        assert!(matches!(&taken, DeviceError::InUse { .. }), "{taken}");
        assert_eq!(taken.to_string(), "lan of this machine has the interface tap0");
        let same = state.check_card(Some("tap1"), mac("02:00:00:00:00:01")).unwrap_err();
        assert!(matches!(&same, DeviceError::BadNet { .. }), "{same}");
        let status = state.status(&state.devices[0]);
        assert_eq!(status.interface.as_deref(), Some("tap0"));
        assert_eq!(status.mac.as_deref(), Some("02:00:00:00:00:01"));
    }

    #[test]
    fn slots_are_given_out_in_turn_and_none_twice() {
        let mut state = State::new(vec![Device::new("a".into(), DISK, at(2, 0), None)]);
        // The bridge, and functions that are nobody's here.
        let free = !(bit(0) | bit(4) | bit(5));
        let mut slots = Vec::new();
        while let Some(address) = state.free_slot(free) {
            state.last = address.device();
            slots.push(address.device());
            state.add(Device::new(state.free_id(DeviceId::of_disk).to_string(), DISK, Some(address), None));
        }
        let expected: Vec<_> = (1..32).filter(|slot| ![2, 4, 5].contains(slot)).collect();
        assert_eq!(slots, expected);
        // Free again, each comes after those that were not used for longer.
        state.devices.retain(|device| !device.is_in(31) && !device.is_in(1));
        state.last = 10;
        let next = std::iter::from_fn(|| {
            let slot = state.free_slot(free)?.device();
            state.last = slot;
            state.add(Device::new(String::new(), DISK, at(slot, 0), None));
            Some(slot)
        });
        assert_eq!(next.collect::<Vec<_>>(), [31, 1]);
    }

    #[test]
    fn a_name_that_nobody_has_is_found() {
        let device = |id: &str| Device::new(id.into(), DISK, None, None);
        let mut state = State::new(vec![device("disk1"), device("root")]);
        assert_eq!(state.free_id(DeviceId::of_disk), DeviceId::of_disk(0));
        state.add(device("disk0"));
        assert_eq!(state.free_id(DeviceId::of_disk), DeviceId::of_disk(2));
        assert_eq!(state.free_id(DeviceId::of_net), DeviceId::of_net(0));
    }
}
