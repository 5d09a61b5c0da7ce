//! `Handle`: what of a machine others may reach, and what those do who control it from outside.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmm_core::{VmEvent, VmEvents};
use vmm_devices::virtio::balloon::Balloon;
use vmm_devices::virtio::mem::Mem;
use vmm_devices::virtio::vhost_user::VhostUser;
use vmm_memory::{DirtyError, DirtyPages, DirtyTracker};
use vmm_vcpu::{PauseError, RunState, Vcpus};

use super::PowerButton;
use super::exits::Exits;
use super::plugged::Plugged;
use crate::config::DeviceId;
use crate::control::balloon::{BalloonRefusal, BalloonReport, BalloonSetting, ControlledBalloon};
use crate::control::devices::DeviceControl;
use crate::control::disks::ControlledDisks;
use crate::control::memory::{MemoryRefusal, MemoryStatus};
use crate::control::nets::ControlledNets;
use crate::control::operations::{ASKED_BY, Controlled, DirtyRate, OperationError, State};
use crate::control::vsock::{NoVsock, VsockStatus};
use crate::stats::{KernelStats, MachineCounters, Report};
use crate::vhost_user::BackEndReport;
use crate::vsock::SocketPart;

/// The vCPUs of a machine and what is beside them.
pub(super) struct Handle {
    pub(super) vcpus: Vcpus,
    /// Absent if nobody wants them, or the kernel has none.
    pub(super) kernel_stats: Option<KernelStats>,
    pub(super) power_button: PowerButton,
    pub(super) plugged: Arc<Plugged>,
    /// Those that serve devices, with what these are called.
    pub(super) back_ends: Vec<(DeviceId, Arc<VhostUser>)>,
    /// The socket device, if there is one.
    pub(super) vsock: Option<SocketPart>,
    /// The memory device, if there is one.
    pub(super) mem: Option<Arc<Mem>>,
    /// The balloon, if there is one.
    pub(super) balloon: Option<Arc<Balloon>>,
    pub(super) exits: Arc<Exits>,
    pub(super) events: VmEvents,
    /// Knows what is written to. Locked by whoever looks.
    pub(super) dirty: Mutex<Arc<DirtyTracker>>,
}

/// How often somebody who counts looks whether the machine has ended, whose teardown waits for him.
const TICK: Duration = Duration::from_millis(20);

impl Handle {
    fn count_dirty(&self, tracker: &DirtyTracker, time: Duration) -> Result<DirtyRate, DirtyError> {
        tracker.start()?;
        // With a log that is full at first, everything.
        tracker.harvest()?;
        let start = Instant::now();
        while let left = time.saturating_sub(start.elapsed())
            && left > Duration::ZERO
            && self.events.get().is_none()
        {
            thread::sleep(left.min(TICK));
        }
        let harvest = tracker.harvest()?;
        let pages = harvest.iter().map(DirtyPages::count).sum();
        Ok(DirtyRate { pages, ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) })
    }
}

impl Controlled for Handle {
    fn state(&self) -> State {
        if self.events.get().is_some() {
            return State::Stopping;
        }
        match self.vcpus.run_state() {
            RunState::Running => State::Running,
            RunState::Pausing => State::Pausing,
            RunState::Paused => State::Paused,
        }
    }

    fn pause(&self, limit: Duration) -> Result<(), OperationError> {
        self.vcpus.pause(limit).map_err(|error| match error {
            PauseError::NoAnswer { index, limit } => OperationError::NoAnswer { vcpu: index, limit },
            PauseError::Resumed => OperationError::Resumed,
            // A vCPU ends only with its machine.
            PauseError::Ended { .. } | PauseError::OwnThread { .. } => OperationError::Stopping,
        })
    }

    fn resume(&self) {
        self.vcpus.resume();
    }

    fn press_power_button(&self) -> bool {
        self.power_button.press()
    }

    fn reset(&self) -> bool {
        self.events.send(VmEvent::Reset(ASKED_BY))
    }

    fn dirty_rate(&self, time: Duration) -> Result<DirtyRate, OperationError> {
        let tracker = self.dirty.try_lock().map_err(|_| OperationError::Tracking)?;
        let counted = self.count_dirty(&tracker, time);
        let stopped = tracker.stop();
        if self.state() == State::Stopping {
            return Err(OperationError::Stopping);
        }
        counted.and_then(|rate| stopped.map(|()| rate)).map_err(|error| {
            tracing::error!(
                "the pages that are written to cannot be counted: {:#}",
                anyhow::Error::new(error)
            );
            OperationError::NotTracked
        })
    }

    fn balloon(&self) -> &dyn ControlledBalloon {
        self
    }

    fn disks(&self) -> &dyn ControlledDisks {
        &*self.plugged
    }

    fn nets(&self) -> &dyn ControlledNets {
        &*self.plugged
    }

    fn vsock(&self) -> Result<VsockStatus, NoVsock> {
        self.vsock.as_ref().map(SocketPart::status).ok_or(NoVsock)
    }

    fn devices(&self) -> &dyn DeviceControl {
        &*self.plugged
    }

    fn memory(&self, requested: Option<u64>) -> Result<MemoryStatus, MemoryRefusal> {
        let mem = self.mem.as_ref().ok_or(MemoryRefusal::None)?;
        if let Some(bytes) = requested {
            mem.request(bytes).map_err(|error| MemoryRefusal::BadSize(error.to_string()))?;
        }
        let counts = mem.counts();
        Ok(MemoryStatus {
            plugged: counts.plugged_bytes,
            requested: counts.requested_bytes,
            size: counts.region_bytes,
            block: counts.block_bytes,
        })
    }

    fn report(&self) -> Report {
        let (unclaimed_ports, unclaimed_mmio) = (self.exits.pio.unclaimed(), self.exits.mmio.unclaimed());
        let counters = MachineCounters { unclaimed_ports, unclaimed_mmio };
        let report = Report::take(counters, self.vcpus.counters(), self.kernel_stats.as_ref());
        let back_end = |(id, user): &(DeviceId, Arc<VhostUser>)| BackEndReport {
            id: id.clone(),
            monitor: user.counts(),
        };
        let back_ends = self.back_ends.iter().map(back_end).collect();
        let vsock = self.vsock.as_ref().and_then(SocketPart::counts);
        let mem = self.mem.as_ref().map(|mem| mem.counts());
        let balloon = self.balloon.as_ref().map(|balloon| balloon.counts());
        let report = report.with_disks(self.plugged.disk_counts()).with_nets(self.plugged.net_counts());
        let report = report.with_back_ends(back_ends);
        report.with_vsock(vsock).with_memory(mem).with_balloon(balloon)
    }
}

impl Handle {
    fn its_balloon(&self) -> Result<&Balloon, BalloonRefusal> {
        self.balloon.as_deref().ok_or(BalloonRefusal::NoBalloon)
    }
}

impl ControlledBalloon for Handle {
    fn show(&self) -> Result<BalloonReport, BalloonRefusal> {
        Ok(self.its_balloon()?.status().into())
    }

    fn set(&self, setting: BalloonSetting) -> Result<(), BalloonRefusal> {
        let balloon = self.its_balloon()?;
        if let Some(size) = setting.size {
            balloon.set_target(size)?;
        }
        if let Some(interval) = setting.statistics_interval {
            balloon.set_statistics_interval(interval);
        }
        Ok(())
    }

    fn hint(&self, start: bool) -> Result<(), BalloonRefusal> {
        let balloon = self.its_balloon()?;
        if start {
            balloon.start_hinting()?;
        } else {
            balloon.stop_hinting();
        }
        Ok(())
    }
}
