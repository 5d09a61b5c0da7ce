//! `Handle`: what of a machine others may reach, and what those do who control it from outside.

use std::sync::Arc;
use std::time::Duration;

use vmm_core::{VmEvent, VmEvents};
use vmm_vcpu::{PauseError, RunState, Vcpus};

use super::PowerButton;
use super::exits::Exits;
use crate::control::operations::{ASKED_BY, Controlled, OperationError, State};
use crate::stats::{KernelStats, MachineCounters, Report};

/// The vCPUs of a machine and what is beside them.
pub(super) struct Handle {
    pub(super) vcpus: Vcpus,
    /// Absent if nobody wants them, or the kernel has none.
    pub(super) kernel_stats: Option<KernelStats>,
    pub(super) power_button: PowerButton,
    pub(super) exits: Arc<Exits>,
    pub(super) events: VmEvents,
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

    fn report(&self) -> Report {
        let (unclaimed_ports, unclaimed_mmio) = (self.exits.pio.unclaimed(), self.exits.mmio.unclaimed());
        let counters = MachineCounters { unclaimed_ports, unclaimed_mmio };
        Report::take(counters, self.vcpus.counters(), self.kernel_stats.as_ref())
    }
}
