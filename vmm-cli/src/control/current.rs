//! `Current`: the machine of the moment, lent to operations and taken back before it is taken apart.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::operations::{Controlled, OperationError};

/// A place for one machine. It is lent, never locked: whoever waits for a vCPU holds a [`Lease`] and no lock.
#[derive(Default)]
pub struct Current {
    state: Mutex<State>,
    /// The last lease has been returned.
    returned: Condvar,
}

#[derive(Default)]
struct State {
    place: Place,
    leases: usize,
}

#[derive(Default)]
enum Place {
    /// There is no machine yet.
    #[default]
    Starting,
    /// This one, since then.
    Live(Arc<dyn Controlled>, Instant),
    /// There is none any more.
    Stopping,
}

impl Current {
    /// Lends `machine` from now on, until what is returned is dropped.
    pub fn publish(self: &Arc<Self>, machine: Arc<dyn Controlled>) -> Publication {
        self.lock().place = Place::Live(machine, Instant::now());
        Publication(Arc::clone(self))
    }

    /// There will be another machine.
    pub fn starts_again(&self) {
        self.lock().place = Place::Starting;
    }

    /// Borrows the machine. Its teardown waits for the lease: who holds one must not wait for that.
    pub(super) fn lease(self: &Arc<Self>) -> Result<Lease, OperationError> {
        let mut state = self.lock();
        match &state.place {
            Place::Starting => Err(OperationError::Starting),
            Place::Stopping => Err(OperationError::Stopping),
            Place::Live(machine, since) => {
                let (machine, since) = (Arc::clone(machine), *since);
                state.leases += 1;
                Ok(Lease { machine, since, _back: Back(Arc::clone(self)) })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine that is lent. Dropped, it is not lent any more, and all leases are back: nobody but the owner has the
/// machine then. The machine must have been asked to stop before, so that no lease is held for long.
#[must_use]
pub struct Publication(Arc<Current>);

impl Drop for Publication {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let place = std::mem::replace(&mut state.place, Place::Stopping);
        while state.leases != 0 {
            state = self.0.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        // Not under the lock: it may be the last handle of whatever it holds.
        drop(place);
    }
}

/// The machine, borrowed.
pub(super) struct Lease {
    /// Dropped before the lease is back.
    machine: Arc<dyn Controlled>,
    since: Instant,
    _back: Back,
}

impl Lease {
    /// How long ago the machine's life began.
    pub(super) fn uptime(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Deref for Lease {
    type Target = dyn Controlled;

    fn deref(&self) -> &Self::Target {
        &*self.machine
    }
}

/// Gives a lease back.
struct Back(Arc<Current>);

impl Drop for Back {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.leases -= 1;
        if state.leases == 0 {
            self.0.returned.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::control::testing::FakeMachine;

    #[test]
    fn a_machine_is_lent_from_publication_to_its_end() {
        let current = Arc::new(Current::default());
        assert!(matches!(current.lease(), Err(OperationError::Starting)));
        let published = current.publish(Arc::new(FakeMachine::default()));
        assert!(current.lease().is_ok());
        drop(published);
        assert!(matches!(current.lease(), Err(OperationError::Stopping)));
        current.starts_again();
        assert!(matches!(current.lease(), Err(OperationError::Starting)));
    }

    #[test]
    fn fault_d5_the_end_waits_for_those_who_have_the_machine_and_leaves_none() {
        let (current, machine) = (Arc::new(Current::default()), Arc::new(FakeMachine::default()));
        let published = current.publish(Arc::clone(&machine) as _);
        let lease = current.lease().ok().unwrap();
        let (sender, ended) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(published);
                sender.send(Arc::strong_count(&machine)).unwrap();
            });
            // From now on the end is under way.
            while current.lease().is_ok() {
                std::thread::yield_now();
            }
            assert!(ended.try_recv().is_err());
            drop(lease);
            assert_eq!(ended.recv().unwrap(), 1);
        });
    }
}
