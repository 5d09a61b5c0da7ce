//! `Reconfigure`: the thread that makes changes which their askers cannot wait for.
//!
//! A handler runs inside an access: it can neither wait for the end of all accesses nor for its own worker. It posts the
//! change and returns, with a [`Deferred`](vmm_core::Deferred) if the guest has to see it done. Changes are made one after
//! the other, in the order in which they were posted, without any lock.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_core::thread::spawn;
use vmm_core::{VmEvent, VmEvents};

use crate::calls::RECONFIGURE;

/// Changes that may wait. A vCPU whose accesses are deferred asks for one at a time.
const WAITING: usize = 1024;

/// Why a change cannot be posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The machine ends.
    #[error("no more changes are made")]
    Ended,
    /// The guest asks for changes faster than they can be made.
    #[error("{WAITING} changes wait already")]
    Full,
    /// The host gives no thread.
    #[error("cannot start the thread that makes changes")]
    Thread(#[source] io::Error),
}

type Change = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    changes: VecDeque<Change>,
    ended: bool,
    /// Started by the first change.
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// A change was posted, or the end has come.
    news: Condvar,
    events: VmEvents,
}

/// The owner of the thread `reconfigure`, one a machine. Dropped, it lets a change that has begun come to its end, drops
/// the others, and joins the thread.
pub struct Reconfigure(Arc<Shared>);

/// Posts changes. Clones post to the same thread.
#[derive(Clone)]
pub struct Poster(Arc<Shared>);

impl Reconfigure {
    /// A thread that is not started before it is needed. A change that panics is said to `events`: it may have been left
    /// half made.
    #[must_use]
    pub fn new(events: VmEvents) -> Self {
        Self(Arc::new(Shared { queue: Mutex::default(), news: Condvar::new(), events }))
    }

    /// A handle for a device.
    #[must_use]
    pub fn poster(&self) -> Poster {
        Poster(Arc::clone(&self.0))
    }
}

impl Drop for Reconfigure {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.ended = true;
        let (thread, changes) = (queue.thread.take(), std::mem::take(&mut queue.changes));
        drop(queue);
        self.0.news.notify_all();
        // What they own may lock what it likes.
        drop(changes);
        // A change that owns the machine drops it here: the thread ends by itself after it.
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // Panics are caught and reported by the thread.
            let _ = thread.join();
        }
    }
}

impl Poster {
    /// Has `change` made later, on a thread that may wait. Does not block.
    ///
    /// # Errors
    /// See [`PostError`]; `change` is dropped then.
    pub fn post(&self, change: impl FnOnce() + Send + 'static) -> Result<(), PostError> {
        let mut queue = self.0.lock();
        if queue.ended {
            return Err(PostError::Ended);
        }
        if queue.changes.len() >= WAITING {
            return Err(PostError::Full);
        }
        if queue.thread.is_none() {
            let shared = Arc::clone(&self.0);
            let thread = spawn(&RECONFIGURE, RECONFIGURE.name, move || shared.make_changes());
            queue.thread = Some(thread.map_err(PostError::Thread)?);
        }
        queue.changes.push_back(Box::new(change));
        drop(queue);
        self.0.news.notify_one();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_changes(&self) {
        while let Some(change) = self.next() {
            if catch_unwind(AssertUnwindSafe(change)).is_err() {
                self.events.send(VmEvent::Internal("a change of the machine panicked".into()));
            }
        }
    }

    /// The change to be made next; `None` at the end.
    fn next(&self) -> Option<Change> {
        let mut queue = self.lock();
        while !queue.ended {
            match queue.changes.pop_front() {
                Some(change) => return Some(change),
                None => queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use vmm_core::{Completer, Deferred, deferred};

    use super::*;
    use crate::{Bus, BusDevice};

    fn reconfigure() -> Reconfigure {
        Reconfigure::new(VmEvents::new().unwrap())
    }

    /// A device with a BAR: writing to it moves it to the address that is written.
    struct Movable {
        bus: Arc<Bus>,
        at: Mutex<u64>,
        poster: Poster,
    }

    impl Movable {
        fn move_to(self: Arc<Self>, to: u64, completer: Completer) {
            let mut at = self.at.lock().unwrap();
            self.bus.move_range(*at, to).unwrap().wait().unwrap();
            *at = to;
            completer.complete();
        }
    }

    struct Handle(Arc<Movable>);

    impl BusDevice for Handle {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(1);
        }

        fn write(&self, _offset: u64, _data: &[u8]) {}

        fn write_deferred(&self, _offset: u64, data: &[u8]) -> Option<Deferred> {
            let to = u64::from(data[0]);
            let (completer, access) = deferred();
            let device = Arc::clone(&self.0);
            self.0.poster.post(move || device.move_to(to, completer)).ok()?;
            Some(access)
        }
    }

    #[test]
    fn a_handler_moves_its_device_and_its_access_ends_when_it_has_moved() {
        let (bus, reconfigure) = (Arc::new(Bus::new("test")), reconfigure());
        let device = Movable { bus: Arc::clone(&bus), at: Mutex::new(0x10), poster: reconfigure.poster() };
        bus.insert(0x10, 4, "movable", Arc::new(Handle(Arc::new(device)))).unwrap();
        let mut from = 0x10;
        for to in [0x20, 0x30, 0x12, 0x10].repeat(100) {
            let (sender, ended) = channel();
            let access = bus.write(from, 1, &[to as u8]).unwrap();
            access.on_complete(move || sender.send(()).unwrap());
            ended.recv().unwrap();
            let mut data = [0];
            bus.read(to, 1, &mut data);
            assert_eq!(data, [1]);
            from = to;
        }
    }

    #[test]
    fn changes_are_made_in_order() {
        let (reconfigure, (sender, made)) = (reconfigure(), channel());
        for number in 0..100 {
            let sender = sender.clone();
            reconfigure.poster().post(move || sender.send(number).unwrap()).unwrap();
        }
        assert_eq!(made.iter().take(100).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    impl Reconfigure {
        /// Posts a change that waits, and returns once it has begun; it ends when the sender is dropped.
        pub(crate) fn keep_busy(&self) -> Sender<()> {
            let ((begin, begun), (end, ended)) = (channel(), channel::<()>());
            let wait = move || {
                begin.send(()).unwrap();
                assert!(ended.recv().is_err());
            };
            self.poster().post(wait).unwrap();
            begun.recv().unwrap();
            end
        }
    }

    #[test]
    fn the_end_drops_changes_that_have_not_begun_and_refuses_new_ones() {
        let reconfigure = reconfigure();
        let poster = reconfigure.poster();
        let end = reconfigure.keep_busy();
        let (sender, dropped): (_, Receiver<()>) = channel();
        poster.post(move || sender.send(()).unwrap()).unwrap();
        let ending = thread::spawn(move || drop(reconfigure));
        // The change that waits goes before the one that has begun comes to its end.
        assert!(dropped.recv().is_err());
        assert!(matches!(poster.post(|| ()), Err(PostError::Ended)));
        drop(end);
        ending.join().unwrap();
    }

    #[test]
    fn a_flood_of_changes_is_refused_and_does_not_grow() {
        let reconfigure = reconfigure();
        let end = reconfigure.keep_busy();
        let poster = reconfigure.poster();
        assert!((0..WAITING).all(|_| poster.post(|| ()).is_ok()));
        assert!(matches!(poster.post(|| ()), Err(PostError::Full)));
        drop(end);
    }

    #[test]
    fn fault_d3_a_change_that_panics_is_reported_and_the_next_is_made() {
        let events = VmEvents::new().unwrap();
        let reconfigure = Reconfigure::new(events.clone());
        reconfigure.poster().post(|| panic!("a bug in a change")).unwrap();
        drop(reconfigure.keep_busy());
        assert!(matches!(events.get(), Some(VmEvent::Internal(_))));
    }

    #[test]
    fn a_change_may_drop_the_machine_with_its_thread() {
        let reconfigure = reconfigure();
        let (poster, (sender, dropped)) = (reconfigure.poster(), channel());
        let change = move || {
            drop(reconfigure);
            sender.send(()).unwrap();
        };
        poster.post(change).unwrap();
        dropped.recv().unwrap();
        assert!(matches!(poster.post(|| ()), Err(PostError::Ended)));
    }
}
