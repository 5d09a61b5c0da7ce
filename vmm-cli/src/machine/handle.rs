//! `Handle`: a machine as those reach it who control it from outside.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use vmm_core::{VmEvent, VmEvents};
use vmm_vcpu::{PauseError, RunState, Vcpus};

use super::PowerButton;
use crate::control::operations::{ASKED_BY, Controlled, OperationError, State};

/// What of a machine can be controlled. It keeps that alive: it must be gone when the machine is taken apart.
pub(super) struct Handle {
    pub(super) vcpus: Arc<Vcpus>,
    pub(super) power_button: Arc<PowerButton>,
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

    fn statistics(&self) -> Value {
        json!({ "vcpus": self.vcpus.counters() })
    }
}
