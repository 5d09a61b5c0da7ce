//! `Shared`: one hub, and who is to be woken when something was done to it.
//!
//! Lock order: the hub's lock is the only one here. All who take it run on the device's worker.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::hub::Hub;
use super::queue::{RECEIVE, TRANSMIT};
use crate::Timer;
use crate::sync::lock;
use crate::virtio::ActiveQueue;

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The receive queue, which is at the packets for the guest already.
    ReceiveQueue,
    /// Anybody else.
    Other,
}

/// What is behind the lock.
struct State {
    hub: Hub,
    /// When the timer will wake somebody.
    armed: Option<Instant>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    receive: Option<Arc<EventFd>>,
    transmit: Option<Arc<EventFd>>,
    timer: Arc<Timer>,
}

impl Shared {
    pub(super) fn new(hub: Hub, queues: &[ActiveQueue], timer: Arc<Timer>) -> Self {
        let doorbell =
            |index| queues.iter().find(|queue| queue.index == index).map(|queue| Arc::clone(&queue.doorbell));
        let state = Mutex::new(State { hub, armed: None });
        Self { state, receive: doorbell(RECEIVE), transmit: doorbell(TRANSMIT), timer }
    }

    /// Does something with the hub, and wakes whoever has to do with what came of it.
    pub(super) fn with<T>(&self, by: By, act: impl FnOnce(&mut Hub, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let result = act(&mut state.hub, now);
        if by != By::ReceiveQueue && state.hub.has_packets() {
            ring(self.receive.as_ref());
        }
        if state.hub.holds_transmit && state.hub.takes_packets() {
            state.hub.holds_transmit = false;
            ring(self.transmit.as_ref());
        }
        state.hub.count();
        self.arm(&mut state, now);
        result
    }

    /// The timer has woken somebody.
    pub(super) fn pass_time(&self) {
        lock(&self.state).armed = None;
        self.with(By::Other, Hub::pass_time);
    }

    /// Has the timer wake somebody when something is due, or before.
    fn arm(&self, state: &mut State, now: Instant) {
        let Some(deadline) = state.hub.deadline() else { return };
        if state.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        match self.timer.set(deadline.saturating_duration_since(now)) {
            Ok(()) => state.armed = Some(deadline),
            Err(error) => tracing::error!(%error, "the timer of a vsock device cannot be set"),
        }
    }
}

fn ring(doorbell: Option<&Arc<EventFd>>) {
    if let Some(doorbell) = doorbell {
        // It fails only when 2^64 - 2 rings wait already.
        let _ = doorbell.write(1);
    }
}
