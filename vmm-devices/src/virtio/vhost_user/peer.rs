//! `VhostUser`: the back end at the other end of a socket. When it is lost, its device does without until its driver begins anew;
//! then it is looked for again.
//!
//! Lock order: `state`, in it `config`. It is held while the back end is waited for, which has its limit; what a vCPU reads is not
//! under it.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vmm_core::LogLimit;
use vmm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::class::Class;
use super::connection::Connection;
use super::counters::{Counters, VhostUserCounts, count};
use super::hang_up::HangUp;
use super::{VhostUserError, table};
use crate::Connector;
use crate::sync::lock;
use crate::virtio::vhost::{VhostFd, VhostRing};

/// A back end that was there at the beginning.
pub struct VhostUser {
    socket: Arc<dyn Connector>,
    pub(super) class: Class,
    /// Those that are offered.
    features: u64,
    /// Queues of the device that it serves.
    pub(super) queues: usize,
    /// How many of them are enabled, or are to be when they are served. Written under `state`, or while no driver is ready.
    enabled: AtomicUsize,
    state: Mutex<State>,
    config: Mutex<Vec<u8>>,
    is_connected: AtomicBool,
    pub(super) hang_up: Arc<HangUp>,
    pub(super) counters: Counters,
    log: LogLimit,
}

struct State {
    /// It stays where it is when it is lost: whoever watches it is to see that.
    connection: Connection,
    loss: Option<Arc<VhostUserError>>,
    /// Its rings were started, and not stopped since.
    runs: bool,
}

/// Why a device has no back end at the moment.
#[derive(Debug, thiserror::Error)]
#[error("the vhost-user back end is lost")]
pub(super) struct Lost(#[source] Arc<VhostUserError>);

impl VhostUser {
    /// Connects to the back end that listens at `socket`, of a device of `class`.
    ///
    /// # Errors
    /// [`VhostUserError`] says what is missing, and what mends it.
    pub fn open(socket: Arc<dyn Connector>, class: Class) -> Result<Self, VhostUserError> {
        let connection = Connection::open(&*socket, class.wanted())?;
        Self::over(socket, class, connection)
    }

    /// The same over a connection that there is; `socket` is where to look for another.
    pub(super) fn over(
        socket: Arc<dyn Connector>,
        class: Class,
        connection: Connection,
    ) -> Result<Self, VhostUserError> {
        let queues = class.queues(connection.rings)?;
        let hang_up = HangUp::new().map_err(VhostUserError::Own)?;
        hang_up.watch(&connection).map_err(VhostUserError::Own)?;
        let counters = Counters::default();
        count(&counters.connections);
        Ok(Self {
            socket,
            features: connection.features,
            queues,
            enabled: AtomicUsize::new(class.enabled(queues)),
            config: Mutex::new(class.config(&connection.config, queues)),
            class,
            state: Mutex::new(State { connection, loss: None, runs: false }),
            is_connected: AtomicBool::new(true),
            hang_up: Arc::new(hang_up),
            counters,
            log: LogLimit::default(),
        })
    }

    /// What has become of it so far.
    #[must_use]
    pub fn counts(&self) -> VhostUserCounts {
        // Without a driver nobody else looks. Whoever has the lock finds out for himself.
        if let Ok(mut state) = self.state.try_lock() {
            self.is_lost(&mut state);
        }
        self.counters.counts(self.is_connected())
    }

    /// How many queues its device has.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues
    }

    pub(super) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
    }

    /// Has `read` read the configuration of the device.
    pub(super) fn with_config(&self, read: impl FnOnce(&[u8])) {
        read(&lock(&self.config));
    }

    /// A driver is ready, and has not said yet which queues it uses. Does not wait.
    pub(super) fn begin(&self) {
        self.enabled.store(self.class.enabled(self.queues), Ordering::Release);
    }

    /// Has the first `queues` queues enabled, and no others; where there is no back end, as soon as there is one. Whether that is done.
    pub(super) fn enable(&self, queues: usize) -> bool {
        let mut state = lock(&self.state);
        self.enabled.store(queues, Ordering::Release);
        !state.runs || self.ask(&mut state, |connection| connection.enable(self.queues, queues)).is_ok()
    }

    /// Why it is lost, if it is. What the connection is like at the moment is looked at.
    pub(super) fn loss(&self) -> Option<Lost> {
        let mut state = lock(&self.state);
        self.is_lost(&mut state);
        state.loss.clone().map(Lost)
    }

    /// Whether it has ended, and with it all that it had under way; one that was given up may go on with what it has taken.
    pub(super) fn has_ended(&self) -> bool {
        let loss = &lock(&self.state).loss;
        loss.as_deref().is_some_and(|loss| matches!(loss, VhostUserError::Closed))
    }

    fn is_lost(&self, state: &mut State) -> bool {
        if state.loss.is_none() && state.connection.is_closed() {
            self.lose(state, VhostUserError::Closed);
        }
        state.loss.is_some()
    }

    /// Has the back end do something. One that does not is lost.
    fn ask<T>(
        &self,
        state: &mut State,
        ask: impl FnOnce(&mut Connection) -> Result<T, VhostUserError>,
    ) -> Result<T, Lost> {
        if let Some(loss) = &state.loss {
            return Err(Lost(Arc::clone(loss)));
        }
        ask(&mut state.connection).map_err(|error| self.lose(state, error))
    }

    fn lose(&self, state: &mut State, error: VhostUserError) -> Lost {
        state.connection.shut_down();
        let loss = Arc::new(error);
        state.loss = Some(Arc::clone(&loss));
        self.is_connected.store(false, Ordering::Release);
        count(&self.counters.losses);
        if let Some(left_out) = self.log.permit() {
            let source = loss.source().map(ToString::to_string);
            let path = self.socket.path().display();
            tracing::warn!(%path, reason = %loss, source, left_out, "a vhost-user back end is lost");
        }
        Lost(loss)
    }

    /// Looks for the back end again, if it is lost, with `memory` as what it is to know. Whether it was.
    fn reconnect(&self, state: &mut State, memory: &GuestMemory) -> Result<bool, VhostUserError> {
        if !self.is_lost(state) {
            return Ok(false);
        }
        let mut connection = Connection::open(&*self.socket, self.class.wanted())?;
        match self.features & !connection.features {
            0 => {}
            missing => return Err(VhostUserError::Features { missing }),
        }
        self.class.enough(connection.rings, self.queues)?;
        let change = connection.plan(memory)?;
        connection.set_memory(change)?;
        self.hang_up.watch(&connection).map_err(VhostUserError::Own)?;
        *lock(&self.config) = self.class.config(&connection.config, self.queues);
        *state = State { connection, loss: None, runs: false };
        self.is_connected.store(true, Ordering::Release);
        count(&self.counters.connections);
        if let Some(left_out) = self.log.permit() {
            tracing::info!(path = %self.socket.path().display(), left_out, "a vhost-user back end is there again");
        }
        Ok(true)
    }
}

impl VhostFd for VhostUser {
    fn features(&self) -> u64 {
        self.features
    }

    /// A back end that is lost is told of it when it is found again.
    fn set_memory(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut state = lock(&self.state);
        let change = match state.loss {
            // What nobody could be told of is refused all the same.
            Some(_) => return table::runs(memory).map(drop).map_err(io::Error::other),
            None => state.connection.plan(memory).map_err(io::Error::other)?,
        };
        // The loss of a back end is no reason to refuse memory to all others.
        let _ = self.ask(&mut state, |connection| connection.set_memory(change));
        Ok(())
    }

    fn has_to_rest(&self, memory: &GuestMemory) -> bool {
        let state = lock(&self.state);
        state.loss.is_none() && state.connection.plan(memory).is_ok_and(|change| change.interrupts())
    }

    fn find(&self, memory: &GuestMemory) -> io::Result<bool> {
        self.reconnect(&mut lock(&self.state), memory).map_err(io::Error::other)
    }

    fn start(&self, features: u64, rings: &[VhostRing], memory: &GuestMemory) -> io::Result<()> {
        let mut state = lock(&self.state);
        let enabled = self.enabled.load(Ordering::Acquire);
        let started = self.ask(&mut state, |connection| connection.start(features, rings, enabled, memory));
        state.runs = started.is_ok();
        started.map_err(io::Error::other)
    }

    fn stop(&self, rings: &[VhostRing]) -> io::Result<Vec<u16>> {
        let mut state = lock(&self.state);
        state.runs = false;
        let stopped = self.ask(&mut state, |connection| connection.stop(rings));
        Ok(stopped.unwrap_or_else(|_| rings.iter().map(|ring| ring.queue.next_available).collect()))
    }

    fn set_call(&self, ring: usize, call: &EventFd) -> io::Result<()> {
        // The loss is found by whoever watches the connection.
        let _ = self.ask(&mut lock(&self.state), |connection| connection.set_call(ring, call));
        Ok(())
    }
}

impl fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser")
            .field("socket", &self.socket)
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}
