//! `Operations`: what can be asked of a machine that runs, however it is asked.
//!
//! Nothing here knows of a socket or of a form of requests; those are in [`wire`](super::wire) and
//! `server`.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm_core::{VmEvent, VmEvents};

use super::balloon::{BalloonRefusal, BalloonReport, BalloonRequest, ControlledBalloon};
use super::current::{Current, Lease};
use super::devices::{Added, Addition, DeviceControl, DeviceError, DeviceStatus, Removal};
use super::disks::{ControlledDisks, DiskChange, DiskOutcome, DiskRefusal, DiskRequest};
use super::memory::{MemoryRefusal, MemoryStatus};
use super::nets::{ControlledNets, NetLimits, NetRefusal, NetRequest};
use super::roles::{Given, Roles};
use super::vsock::{NoVsock, VsockStatus};
use crate::config::{MemorySize, StatsFormat};
use crate::stats::Report;

/// Who has asked, in the reason of a machine's end.
pub const ASKED_BY: &str = "control socket";

/// The version of the requests and answers. What is added leaves it as it is.
pub const SCHEMA: u32 = 1;

/// One thing that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// How the machine is.
    Status,
    /// Every vCPU stays out of the guest, each having ended its access to a device, at most `limit` from now.
    Pause {
        /// How long the slowest vCPU may take.
        limit: Duration,
    },
    /// Every vCPU goes on.
    Resume,
    /// The guest is asked to shut down.
    PowerButton,
    /// The machine is reset, as by its guest.
    Reset,
    /// The machine and its monitor end.
    Quit,
    /// What has been counted.
    Stats {
        /// For people or for programs.
        format: StatsFormat,
    },
    /// How many pages of RAM are written to.
    DirtyRate {
        /// How long to look.
        time: Duration,
    },
    /// A disk is changed.
    Disk(DiskRequest),
    /// A network device is changed.
    Net(NetRequest),
    /// How much memory is plugged.
    Memory {
        /// Bytes that the guest is to have plugged from now on; `None` leaves that as it is.
        requested: Option<u64>,
    },
    /// Which devices there are.
    Devices,
    /// The machine gets one more device.
    DeviceAdd(Addition),
    /// The machine has a device no more.
    DeviceRemove(Removal),
    /// Something is asked of the balloon.
    Balloon(BalloonRequest),
    /// How the socket device is.
    Vsock,
}

impl Operation {
    /// What the descriptors are that come with it; `None`: none do.
    #[must_use]
    pub fn roles(&self) -> Option<&Roles> {
        match self {
            Self::DeviceAdd(addition) => Some(&addition.roles),
            _ => None,
        }
    }

    /// Whether it may wait, for a vCPU, for the guest, for the host or for time to pass. Any other is done at once.
    #[must_use]
    pub fn waits(&self) -> bool {
        match self {
            Self::Pause { .. } | Self::DirtyRate { .. } => true,
            Self::DeviceAdd(_) | Self::DeviceRemove(_) => true,
            Self::Disk(request) => matches!(request.change, DiskChange::Resize(_)),
            Self::Status | Self::Resume | Self::PowerButton | Self::Devices => false,
            Self::Memory { .. } | Self::Balloon(_) | Self::Net(_) | Self::Vsock => false,
            Self::Reset | Self::Quit | Self::Stats { .. } => false,
        }
    }
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There is none yet, or none between two lives.
    Starting,
    /// The guest runs.
    Running,
    /// A pause has been asked for, and a vCPU has not answered yet.
    Pausing,
    /// No vCPU is in the guest.
    Paused,
    /// It has ended and is taken apart.
    Stopping,
}

/// The answer to [`Operation::Status`]. What the configuration has too is written as it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What the machine is doing.
    pub state: State,
    /// Its number of vCPUs, as in `cpu.count`.
    pub vcpus: u16,
    /// Its RAM, as in `memory.size`.
    pub memory: MemorySize,
    /// How long ago its life began; nothing while there is no machine.
    pub uptime_ms: Option<u64>,
    /// The process of the monitor.
    pub pid: u32,
    /// The monitor's version.
    pub version: String,
}

/// What of the RAM was written to in some time, by the guest and by devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyRate {
    /// Pages of 4096 bytes, each counted once.
    pub pages: u64,
    /// For how long was looked.
    pub ms: u64,
}

/// What an operation has come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of [`Operation::Status`].
    Status(Status),
    /// Of [`Operation::DirtyRate`].
    DirtyRate(DirtyRate),
    /// Of [`Operation::Disk`].
    Disk(DiskOutcome),
    /// Of [`Operation::Net`].
    Net(NetLimits),
    /// Of [`Operation::Memory`].
    Memory(MemoryStatus),
    /// Of [`Operation::Devices`].
    Devices {
        /// All of them.
        devices: Vec<DeviceStatus>,
    },
    /// Of [`Operation::DeviceAdd`].
    Added(Added),
    /// Of [`Operation::Balloon`].
    Balloon(Box<BalloonReport>),
    /// Of [`Operation::Vsock`].
    Vsock(Box<VsockStatus>),
    /// Of an operation that is done: what it has led to.
    Reached {
        /// The machine's state then.
        state: State,
    },
    /// Of an operation that has been passed on: to the guest, or to those who end machines.
    Passed {},
    /// Of [`Operation::Stats`] for programs.
    Statistics(Value),
    /// Of [`Operation::Stats`] for people.
    Table {
        /// Whole lines.
        table: String,
    },
}

/// Why an operation has not been carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// There is no machine yet, or none between two lives.
    #[error("the machine is being started: ask again when its state is running")]
    Starting,
    /// The machine has ended.
    #[error("the machine is being stopped")]
    Stopping,
    /// A vCPU has not parked in time. The pause stays asked for: it is not this client's alone.
    #[error(
        "vCPU {vcpu} has not answered within {limit:?}; it is still to pause: `pause` waits further, `resume` gives up"
    )]
    NoAnswer {
        /// The first that has not.
        vcpu: u32,
        /// How long it had.
        limit: Duration,
    },
    /// Somebody else has resumed the machine while it was being paused.
    #[error("the machine was resumed while it was being paused")]
    Resumed,
    /// The guest has no driver for its power button, or not yet.
    #[error("the guest does not listen to its power button; `quit` ends the machine")]
    NotListening,
    /// Somebody looks already.
    #[error("the pages that are written to are being counted already: ask again when that has ended")]
    Tracking,
    /// KVM does not say what is written to; the log has the reason.
    #[error("this host's KVM does not say which pages are written to: see the log of the monitor")]
    NotTracked,
    /// A disk is as it was.
    #[error(transparent)]
    Disk(#[from] DiskRefusal),
    /// A network device is as it was.
    #[error(transparent)]
    Net(#[from] NetRefusal),
    /// The guest is asked for what it was before.
    #[error(transparent)]
    Memory(#[from] MemoryRefusal),
    /// A device has not been added or removed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The balloon is as it was.
    #[error(transparent)]
    Balloon(#[from] BalloonRefusal),
    /// There is nothing to tell.
    #[error(transparent)]
    Vsock(#[from] NoVsock),
}

/// A machine as operations see it. Only [`pause`](Self::pause), [`dirty_rate`](Self::dirty_rate), another size of one of
/// its [`disks`](Self::disks) and changes of its [`devices`](Self::devices) may wait.
pub trait Controlled: Send + Sync {
    /// What it is doing: any but [`State::Starting`].
    fn state(&self) -> State;
    /// Returns when every vCPU is parked, `limit` is over, or the machine ends.
    ///
    /// # Errors
    /// [`OperationError`]. After [`OperationError::NoAnswer`] the pause stays asked for.
    fn pause(&self, limit: Duration) -> Result<(), OperationError>;
    /// Lets every vCPU go on.
    fn resume(&self);
    /// Presses the power button; returns whether the guest listens to it.
    fn press_power_button(&self) -> bool;
    /// Ends this life of the machine as a reset does; returns whether it has not ended before.
    fn reset(&self) -> bool;
    /// What has been counted.
    fn report(&self) -> Report;
    /// Its devices.
    fn devices(&self) -> &dyn DeviceControl;
    /// Counts the pages that are written to until `time` is over.
    ///
    /// # Errors
    /// [`OperationError`], [`OperationError::Stopping`] soon after the machine's end.
    fn dirty_rate(&self, time: Duration) -> Result<DirtyRate, OperationError>;
    /// Its balloon.
    fn balloon(&self) -> &dyn ControlledBalloon;
    /// Its disks.
    fn disks(&self) -> &dyn ControlledDisks;
    /// Its network devices.
    fn nets(&self) -> &dyn ControlledNets;
    /// How its socket device is.
    ///
    /// # Errors
    /// [`NoVsock`].
    fn vsock(&self) -> Result<VsockStatus, NoVsock>;
    /// Asks its guest to have so many bytes of memory plugged, if any are said; what there is then.
    ///
    /// # Errors
    /// [`MemoryRefusal`].
    fn memory(&self, requested: Option<u64>) -> Result<MemoryStatus, MemoryRefusal>;
}

/// What does not change from one life of a machine to the next.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its number of vCPUs.
    pub vcpus: u16,
    /// Its RAM.
    pub memory: MemorySize,
}

/// Carries operations out, on any thread, on the machine of the moment.
pub struct Operations {
    facts: Facts,
    current: Arc<Current>,
    /// What is asked of those who run the machine: its end.
    asked: VmEvents,
}

impl Operations {
    /// Operations on the machine that `current` has. An end that is asked for goes to `asked`.
    #[must_use]
    pub fn new(facts: Facts, current: Arc<Current>, asked: VmEvents) -> Self {
        Self { facts, current, asked }
    }

    /// Carries `operation` out, with which no descriptors have come.
    ///
    /// # Errors
    /// [`OperationError`]: nothing has changed then, but for a pause that stays asked for.
    pub fn execute(&self, operation: Operation) -> Result<Outcome, OperationError> {
        self.execute_with(operation, Given::default())
    }

    /// Carries `operation` out with the descriptors that it was `given`; those that nobody has then are closed.
    ///
    /// # Errors
    /// [`OperationError`], as [`execute`](Self::execute).
    pub fn execute_with(&self, operation: Operation, given: Given) -> Result<Outcome, OperationError> {
        match operation {
            Operation::Status => Ok(Outcome::Status(self.status())),
            Operation::Pause { limit } => {
                self.machine()?.pause(limit).map(|()| Outcome::Reached { state: State::Paused })
            }
            Operation::Resume => {
                self.machine()?.resume();
                Ok(Outcome::Reached { state: State::Running })
            }
            Operation::PowerButton => {
                let listens = self.machine()?.press_power_button();
                listens.then_some(Outcome::Passed {}).ok_or(OperationError::NotListening)
            }
            Operation::Reset => {
                let is_first = self.machine()?.reset();
                is_first.then_some(Outcome::Passed {}).ok_or(OperationError::Stopping)
            }
            Operation::Quit => {
                self.asked.send(VmEvent::UserStop(ASKED_BY));
                Ok(Outcome::Passed {})
            }
            Operation::DirtyRate { time } => self.machine()?.dirty_rate(time).map(Outcome::DirtyRate),
            Operation::Disk(request) => request.execute(self.machine()?.disks()).map(Outcome::Disk),
            Operation::Net(request) => Ok(Outcome::Net(self.machine()?.nets().limit(&request)?)),
            Operation::Vsock => Ok(Outcome::Vsock(Box::new(self.machine()?.vsock()?))),
            Operation::Memory { requested } => Ok(Outcome::Memory(self.machine()?.memory(requested)?)),
            Operation::Balloon(request) => {
                let report = request.execute(self.machine()?.balloon())?;
                Ok(Outcome::Balloon(Box::new(report)))
            }
            Operation::Devices => Ok(Outcome::Devices { devices: self.machine()?.devices().list() }),
            Operation::DeviceAdd(Addition { device, .. }) => {
                Ok(Outcome::Added(self.machine()?.devices().add(&device, given)?))
            }
            Operation::DeviceRemove(removal) => {
                self.machine()?.devices().remove(&removal)?;
                Ok(Outcome::Passed {})
            }
            Operation::Stats { format } => {
                let report = self.machine()?.report();
                Ok(match format {
                    StatsFormat::Json => Outcome::Statistics(report.to_value()),
                    StatsFormat::Table => Outcome::Table { table: report.to_table() },
                })
            }
        }
    }

    /// A part of the control has failed: the process is to end in an orderly way.
    pub(super) fn fail(&self, what: &str) {
        self.asked.send(VmEvent::Internal(what.into()));
    }

    /// The machine, if it has not ended and nobody has asked for its end.
    fn machine(&self) -> Result<Lease, OperationError> {
        if self.asked.get().is_some() {
            return Err(OperationError::Stopping);
        }
        let machine = self.current.lease()?;
        if machine.state() == State::Stopping { Err(OperationError::Stopping) } else { Ok(machine) }
    }

    fn status(&self) -> Status {
        let (state, uptime) = match self.current.lease() {
            Ok(machine) => (machine.state(), Some(machine.uptime())),
            Err(OperationError::Starting) => (State::Starting, None),
            Err(_) => (State::Stopping, None),
        };
        Status {
            schema: SCHEMA,
            state: if self.asked.get().is_some() { State::Stopping } else { state },
            vcpus: self.facts.vcpus,
            memory: self.facts.memory,
            uptime_ms: uptime.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

#[cfg(test)]
mod tests;
