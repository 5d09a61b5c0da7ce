//! Devices: what can be asked about single devices of a machine, which come and go while it runs.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::roles::{Given, Roles};
use super::wire::ErrorCode;
use crate::config::{DeviceId, DiskConfig, NetConfig, duration};
use crate::outcome::Failure;

/// A device of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name, which no other device of the machine has.
    pub id: String,
    /// What it is, such as `virtio-blk`.
    pub device: String,
    /// Its address on the PCI bus, bus, device and function; nothing where there is no bus.
    pub slot: Option<String>,
    /// Whether it comes or goes.
    pub state: DeviceState,
    /// Whether it can be removed.
    pub removable: bool,
    /// Of a disk: its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Of a network device: its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Of a network device: the address of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// A device that a machine is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewDevice {
    /// A disk, whose paths are absolute.
    Disk(Box<DiskConfig>),
    /// A network device; its interface is named.
    Net(Box<NetConfig>),
}

/// A device that is to be added, and what the descriptors are that come along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// The device.
    pub device: NewDevice,
    /// What each descriptor is.
    pub roles: Roles,
}

impl From<NewDevice> for Addition {
    fn from(device: NewDevice) -> Self {
        Self { device, roles: Roles::default() }
    }
}

/// Where a device is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// It is being made.
    Coming,
    /// The guest has it.
    Plugged,
    /// The guest is asked to give it back.
    Leaving,
}

/// A device that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// The device.
    #[serde(flatten)]
    pub device: DeviceStatus,
    /// Whether the guest listens to what comes. One that does not finds the device when it looks at the bus itself.
    pub notified: bool,
}

/// How a device is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its name.
    pub id: DeviceId,
    /// How long the guest may take.
    pub limit: Duration,
    /// The guest is not asked: it loses what is behind the device, and then is asked for the slot.
    pub force: bool,
}

/// Why a device has not been added or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Devices come and go on a PCI bus.
    #[error("the machine has no PCI bus: devices are added and removed with machine.pci = true (--pci)")]
    NoBus,
    /// Every slot has a device.
    #[error("every slot of the PCI bus is taken; remove a device first")]
    NoSlot,
    /// Another device is called so.
    #[error("there is a device {id} already: choose another id")]
    IdTaken {
        /// The name.
        id: DeviceId,
    },
    /// No device is called so.
    #[error("there is no device {id}; `devices` lists those that there are")]
    UnknownId {
        /// The name.
        id: DeviceId,
    },
    /// It is neither a disk nor a network device, or shares a slot.
    #[error(
        "{id} cannot be removed: it is neither a disk nor a network device, or shares its slot with another device"
    )]
    NotRemovable {
        /// The name.
        id: DeviceId,
    },
    /// Something of it was to come along, and has not.
    #[error(
        "no descriptor has come for {what}: the monitor opens nothing while a machine runs, its client does and sends it along \
         (`vmm-cli ctl` does)"
    )]
    NotGiven {
        /// What.
        what: String,
    },
    /// The disk cannot be had.
    #[error("{message}")]
    BadDisk {
        /// Why.
        message: String,
    },
    /// The interface of a network device, or what the kernel has for it, cannot be had.
    #[error("{message}")]
    BadNet {
        /// Why.
        message: String,
    },
    /// Somebody else, or a device of this machine, has the image or the interface.
    #[error("{message}")]
    InUse {
        /// Who.
        message: String,
    },
    /// The host does not give what the device takes.
    #[error("{message}")]
    Host {
        /// What.
        message: String,
    },
    /// The guest has not given it back in time. It stays asked to.
    #[error(
        "the guest has not given {id} back within {}; it is still asked to: `device-remove` waits further, with `force` the \
         device goes at once{}",
        duration::render(*limit),
        if *listens { "" } else { " (the guest does not listen to hot-plug events)" }
    )]
    NotEjected {
        /// The device.
        id: DeviceId,
        /// How long it had.
        limit: Duration,
        /// Whether the guest has the interrupt of the events open.
        listens: bool,
    },
    /// The machine has ended.
    #[error("the machine is being stopped")]
    Stopping,
}

/// The host does not give what a device takes.
impl From<Failure> for DeviceError {
    fn from(failure: Failure) -> Self {
        Self::Host { message: failure.to_string() }
    }
}

impl DeviceError {
    /// The code on the wire.
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::NoBus => ErrorCode::NoBus,
            Self::NoSlot => ErrorCode::NoSlot,
            Self::IdTaken { .. } => ErrorCode::IdTaken,
            Self::UnknownId { .. } => ErrorCode::UnknownId,
            Self::NotRemovable { .. } => ErrorCode::NotRemovable,
            Self::NotGiven { .. } => ErrorCode::NoDescriptor,
            Self::BadDisk { .. } => ErrorCode::BadDisk,
            Self::BadNet { .. } => ErrorCode::BadNet,
            Self::InUse { .. } => ErrorCode::InUse,
            Self::Host { .. } => ErrorCode::Exhausted,
            Self::NotEjected { .. } => ErrorCode::NoAnswer,
            Self::Stopping => ErrorCode::Stopping,
        }
    }
}

/// The devices of a machine. Only the listing is done at once; the others may wait, until the machine's end.
pub trait DeviceControl {
    /// All of them.
    fn list(&self) -> Vec<DeviceStatus>;
    /// Adds a device, of which everything was opened that it takes.
    ///
    /// # Errors
    /// [`DeviceError`]: the machine is as before.
    fn add(&self, device: &NewDevice, given: Given) -> Result<Added, DeviceError>;
    /// Removes a device; returns when nothing of it is left.
    ///
    /// # Errors
    /// [`DeviceError`]. After [`DeviceError::NotEjected`] the guest stays asked.
    fn remove(&self, removal: &Removal) -> Result<(), DeviceError>;
}

/// The devices as text for people.
pub(super) fn table(devices: &[DeviceStatus]) -> String {
    let header = ["id", "device", "slot", "state", "on the host"].map(str::to_owned);
    let row = |device: &DeviceStatus| {
        let state = match device.state {
            DeviceState::Coming => "coming",
            DeviceState::Plugged if device.removable => "plugged",
            DeviceState::Plugged => "fixed",
            DeviceState::Leaving => "leaving",
        };
        let path = device.path.as_ref().map(|path| path.display().to_string());
        let host = path.or_else(|| device.interface.clone()).unwrap_or_else(|| "-".into());
        let slot = device.slot.clone().unwrap_or_else(|| "-".into());
        [device.id.clone(), device.device.clone(), slot, state.into(), host]
    };
    let rows: Vec<_> = std::iter::once(header).chain(devices.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        super::render::printable(cells.collect::<Vec<_>>().join("  ").trim_end()) + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_a_table_with_a_row_each() {
        let disk = DeviceStatus {
            id: "data".into(),
            device: "virtio-blk".into(),
            slot: Some("00:02.0".into()),
            state: DeviceState::Leaving,
            removable: true,
            path: Some("/a\u{1b}b".into()),
            interface: None,
            mac: None,
        };
        let lan = DeviceStatus {
            id: "lan".into(),
            device: "virtio-net".into(),
            state: DeviceState::Plugged,
            path: None,
            interface: Some("tap0".into()),
            ..disk.clone()
        };
        let entropy = DeviceStatus {
            id: "entropy".into(),
            device: "virtio-rng".into(),
            slot: None,
            state: DeviceState::Plugged,
            removable: false,
            path: None,
            interface: None,
            mac: None,
        };
        let expected = "id       device      slot     state    on the host\n\
                        data     virtio-blk  00:02.0  leaving  /a\u{fffd}b\n\
                        lan      virtio-net  00:02.0  plugged  tap0\n\
                        entropy  virtio-rng  -        fixed    -\n";
        assert_eq!(table(&[disk, lan, entropy]), expected);
    }
}
