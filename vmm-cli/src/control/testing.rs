//! A machine for tests: it does what it is told, or does not answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use vmm_devices::rate_limiter::Limits;
use vmm_vcpu::Counters;

use super::balloon::{BalloonRefusal, BalloonReport, BalloonSetting, ControlledBalloon};
use super::devices::{Added, DeviceControl, DeviceError, DeviceState, DeviceStatus, NewDevice, Removal};
use super::disks::{ControlledDisks, DiskLimits, DiskRefusal, DiskSize, NewSize};
use super::limits::{self, NewLimits};
use super::memory::{MemoryRefusal, MemoryStatus};
use super::nets::{ControlledNets, NetLimits, NetRefusal, NetRequest};
use super::operations::{Controlled, DirtyRate, OperationError, State};
use super::roles::Given;
use super::vsock::{NoVsock, VsockStatus};
use crate::config::DeviceId;
use crate::stats::{MachineCounters, Report};

/// A machine of two vCPUs, whose second one may not answer.
pub(crate) struct FakeMachine {
    state: Mutex<State>,
    changed: Condvar,
    deaf: AtomicBool,
    listens: AtomicBool,
    devices: Mutex<Vec<DeviceStatus>>,
}

impl Default for FakeMachine {
    fn default() -> Self {
        Self {
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
            deaf: AtomicBool::new(false),
            listens: AtomicBool::new(false),
            devices: Mutex::default(),
        }
    }
}

impl FakeMachine {
    /// From now on a pause waits until its limit or the machine's end.
    pub(crate) fn answers_no_pause(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    /// From now on the guest listens to its power button.
    pub(crate) fn listens(&self) {
        self.listens.store(true, Ordering::Relaxed);
    }

    fn find(&self, id: &DeviceId) -> Result<(), DiskRefusal> {
        let disks = vec![DeviceId::of_disk(0)];
        if disks.contains(id) { Ok(()) } else { Err(DiskRefusal::Unknown { id: id.clone(), disks }) }
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }
}

impl Controlled for FakeMachine {
    fn state(&self) -> State {
        *self.state.lock().unwrap()
    }

    fn pause(&self, limit: Duration) -> Result<(), OperationError> {
        if !self.deaf.load(Ordering::Relaxed) {
            self.set(State::Paused);
            return Ok(());
        }
        self.set(State::Pausing);
        let pausing = |state: &mut State| *state == State::Pausing;
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, limit, pausing).unwrap();
        match *state {
            State::Stopping => Err(OperationError::Stopping),
            State::Pausing => Err(OperationError::NoAnswer { vcpu: 1, limit }),
            _ => Err(OperationError::Resumed),
        }
    }

    fn resume(&self) {
        self.set(State::Running);
    }

    fn press_power_button(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    fn reset(&self) -> bool {
        let is_first = self.state() != State::Stopping;
        self.set(State::Stopping);
        is_first
    }

    fn dirty_rate(&self, time: Duration) -> Result<DirtyRate, OperationError> {
        let ms = u64::try_from(time.as_millis()).map_err(|_| OperationError::NotTracked)?;
        Ok(DirtyRate { pages: 3, ms })
    }

    fn memory(&self, requested: Option<u64>) -> Result<MemoryStatus, MemoryRefusal> {
        match requested.unwrap_or(0) {
            requested @ 0..=8192 => Ok(MemoryStatus { plugged: 0, requested, size: 8192, block: 4096 }),
            bytes => Err(MemoryRefusal::BadSize(format!("{bytes} bytes are too many"))),
        }
    }

    fn balloon(&self) -> &dyn ControlledBalloon {
        self
    }

    fn disks(&self) -> &dyn ControlledDisks {
        self
    }

    fn nets(&self) -> &dyn ControlledNets {
        self
    }

    fn vsock(&self) -> Result<VsockStatus, NoVsock> {
        Err(NoVsock)
    }

    fn devices(&self) -> &dyn DeviceControl {
        self
    }

    fn report(&self) -> Report {
        let mut counters = [Counters::default(); 2];
        (counters[0].port_reads, counters[1].port_reads) = (1, 2);
        Report::take(MachineCounters::default(), counters.to_vec(), None)
    }
}

/// A machine without a balloon.
impl ControlledBalloon for FakeMachine {
    fn show(&self) -> Result<BalloonReport, BalloonRefusal> {
        Err(BalloonRefusal::NoBalloon)
    }

    fn set(&self, _setting: BalloonSetting) -> Result<(), BalloonRefusal> {
        Err(BalloonRefusal::NoBalloon)
    }

    fn hint(&self, _start: bool) -> Result<(), BalloonRefusal> {
        Err(BalloonRefusal::NoBalloon)
    }
}

/// A disk `disk0` of 512 bytes without limits.
impl ControlledDisks for FakeMachine {
    fn resize(&self, id: &DeviceId, size: Option<NewSize>) -> Result<DiskSize, DiskRefusal> {
        self.find(id)?;
        Ok(DiskSize { disk: id.clone(), bytes: size.map_or(512, |size| size.bytes) })
    }

    fn limit(&self, id: &DeviceId, limits: NewLimits) -> Result<DiskLimits, DiskRefusal> {
        self.find(id)?;
        let limits = limits.applied(Limits::default());
        let (bandwidth, operations) = (limits::text(limits.bytes), limits::text(limits.operations));
        Ok(DiskLimits { disk: id.clone(), bandwidth, operations })
    }
}

/// A network device `net0` without limits.
impl ControlledNets for FakeMachine {
    fn limit(&self, NetRequest { net, receive, transmit }: &NetRequest) -> Result<NetLimits, NetRefusal> {
        let nets = vec![DeviceId::of_net(0)];
        if !nets.contains(net) {
            return Err(NetRefusal::Unknown { id: net.clone(), nets });
        }
        let [receive, transmit] = [receive, transmit].map(|way| way.applied(Limits::default()));
        Ok(NetLimits {
            net: net.clone(),
            receive_bandwidth: limits::text(receive.bytes),
            receive_frames: limits::text(receive.operations),
            transmit_bandwidth: limits::text(transmit.bytes),
            transmit_frames: limits::text(transmit.operations),
        })
    }
}

/// A machine whose guest gives every device back at once, but for the one called `kept`.
impl DeviceControl for FakeMachine {
    fn list(&self) -> Vec<DeviceStatus> {
        self.devices.lock().unwrap().clone()
    }

    fn add(&self, new: &NewDevice, _given: Given) -> Result<Added, DeviceError> {
        let (id, name) = match new {
            NewDevice::Disk(disk) => (disk.id(0), "virtio-blk"),
            NewDevice::Net(net) => (net.id(0), "virtio-net"),
        };
        let (path, interface) = match new {
            NewDevice::Disk(disk) => (disk.path.clone(), None),
            NewDevice::Net(net) => (None, net.tap.clone()),
        };
        let mut devices = self.devices.lock().unwrap();
        if devices.iter().any(|device| device.id == id.as_str()) {
            return Err(DeviceError::IdTaken { id });
        }
        let device = DeviceStatus {
            id: id.to_string(),
            device: name.into(),
            slot: Some("00:01.0".into()),
            state: DeviceState::Plugged,
            removable: true,
            path,
            interface,
            mac: None,
        };
        devices.push(device.clone());
        Ok(Added { device, notified: true })
    }

    fn remove(&self, removal: &Removal) -> Result<(), DeviceError> {
        let Removal { id, limit, force } = removal.clone();
        let mut devices = self.devices.lock().unwrap();
        let Some(at) = devices.iter().position(|device| device.id == id.as_str()) else {
            return Err(DeviceError::UnknownId { id });
        };
        if id.as_str() == "kept" && !force {
            devices[at].state = DeviceState::Leaving;
            return Err(DeviceError::NotEjected { id, limit, listens: true });
        }
        devices.remove(at);
        Ok(())
    }
}
