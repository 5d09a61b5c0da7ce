//! `Backend`: the descriptors of vhost that a device has, and which of its rings they serve at the moment.
//!
//! Each descriptor has as many rings: with two, as the kernel's have, queue 2n is ring 0 of the descriptor n, queue 2n + 1 its ring 1.
//!
//! The kernel reads and writes rings by addresses of this process, which it does not look up again. Before a region leaves in which
//! rings are, these are stopped; they go on where they are mapped again.

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::{VhostFd, VhostMemory, VhostRing};
use crate::sync::lock;
use crate::virtio::queue::QueueState;

/// Rings of a descriptor of the kernel's.
const RINGS: usize = 2;

/// A ring is not in guest RAM in one piece.
#[derive(Debug, thiserror::Error)]
#[error("an area of queue {0} is not in one region of guest RAM")]
struct Scattered(usize);

/// There is nothing to be served any more.
#[derive(Debug, thiserror::Error)]
#[error("what is behind the queues was taken away")]
struct Over;

/// The kernel's side of a device. Dropped, it serves nothing.
pub struct Backend {
    fds: Vec<Arc<dyn VhostFd>>,
    /// Of each descriptor; at least one.
    rings: usize,
    state: Mutex<State>,
}

struct State {
    memory: Arc<GuestMemory>,
    features: u64,
    /// For each descriptor.
    parts: Vec<Part>,
    /// The rings are to be served, where they are in memory.
    is_on: bool,
    /// None is served any more.
    is_over: bool,
}

/// The rings of one descriptor.
#[derive(Default)]
struct Part {
    rings: Vec<VhostRing>,
    runs: bool,
}

impl Backend {
    /// A device with these descriptors, whose guest memory is that of `memory`.
    ///
    /// # Errors
    /// The kernel does not take the memory.
    pub fn new(fds: Vec<Arc<dyn VhostFd>>, memory: &VhostMemory) -> io::Result<Arc<Self>> {
        Self::with_rings(fds, RINGS, memory)
    }

    /// The same with `rings` rings of each descriptor.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub fn with_rings(
        fds: Vec<Arc<dyn VhostFd>>,
        rings: usize,
        memory: &VhostMemory,
    ) -> io::Result<Arc<Self>> {
        let parts = fds.iter().map(|_| Part::default()).collect();
        let state = State { memory: Arc::default(), features: 0, parts, is_on: false, is_over: false };
        let backend = Arc::new(Self { fds, rings: rings.max(1), state: Mutex::new(state) });
        memory.join(&backend)?;
        Ok(backend)
    }

    /// The features that all descriptors have.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.fds.iter().fold(u64::MAX, |all, fd| all & fd.features())
    }

    /// How many queues it can serve, the first ones of a device.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.fds.len().saturating_mul(self.rings)
    }

    /// Takes rings, each with the number of its queue in the place of the descriptor's, and does not serve them yet.
    pub(super) fn set(&self, features: u64, rings: Vec<VhostRing>) {
        let mut state = lock(&self.state);
        state.features = features;
        for ring in rings {
            let (part, index) = self.place(ring.index);
            if let Some(part) = state.parts.get_mut(part) {
                part.rings.push(VhostRing { index, ..ring });
            }
        }
    }

    /// Serves all rings from now on, for a driver that begins. Returns whether somebody else serves them than did before.
    ///
    /// # Errors
    /// The kernel's, or a ring is not in one region of guest RAM, or it [has stopped for good](Self::stop_for_good); none is served then.
    pub(super) fn run(&self) -> io::Result<bool> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.is_over {
            return Err(io::Error::other(Over));
        }
        let queues = |part: &Part| part.rings.iter().map(|ring| ring.queue).collect::<Vec<_>>();
        let mut outside = state.parts.iter().flat_map(queues).filter(|queue| !is_in(&state.memory, queue));
        if let Some(queue) = outside.next() {
            return Err(io::Error::other(Scattered(queue.index)));
        }
        let mut is_another = false;
        for fd in &self.fds {
            is_another |= fd.find(&state.memory)?;
        }
        state.is_on = true;
        for (part, fd) in state.parts.iter_mut().zip(&self.fds) {
            if let Err(error) = part.start(&**fd, state.features, &state.memory) {
                self.stop_all(state);
                return Err(error);
            }
        }
        Ok(is_another)
    }

    /// Serves none until [`run`](Self::run).
    pub(super) fn pause(&self) {
        self.stop_all(&mut lock(&self.state));
    }

    /// Serves none any more, whatever is asked of it.
    pub(in crate::virtio) fn stop_for_good(&self) {
        let mut state = lock(&self.state);
        state.is_over = true;
        self.stop_all(&mut state);
    }

    /// Serves none any more and forgets them; returns how far the queues have come.
    pub(super) fn end(&self) -> Vec<QueueState> {
        let mut state = lock(&self.state);
        self.stop_all(&mut state);
        let rings = state.parts.iter_mut().flat_map(|part| std::mem::take(&mut part.rings));
        rings.map(|ring| ring.queue).collect()
    }

    /// Signals `call` for the driver of `queue`, which was signalled by another eventfd so far.
    pub(super) fn set_call(&self, queue: usize, call: Arc<EventFd>) -> io::Result<()> {
        let mut state = lock(&self.state);
        let (part, index) = self.place(queue);
        let found = state.parts.get_mut(part).zip(self.fds.get(part));
        let Some((part, fd)) = found else { return Ok(()) };
        let Some(ring) = part.rings.iter_mut().find(|ring| ring.index == index) else { return Ok(()) };
        ring.call = call;
        if part.runs { fd.set_call(index, &ring.call) } else { Ok(()) }
    }

    /// The descriptor of a queue, and its ring there.
    fn place(&self, queue: usize) -> (usize, usize) {
        (queue.checked_div(self.rings).unwrap_or(queue), queue.checked_rem(self.rings).unwrap_or(0))
    }

    /// Goes over to other memory: rings that are not in it are stopped, those that are in it again go on.
    pub(super) fn set_memory(&self, new: &Arc<GuestMemory>) -> io::Result<()> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let told = self.tell(state, new);
        if told.is_ok() {
            state.memory = Arc::clone(new);
        }
        self.go_on(state);
        told
    }

    /// Stops the rings that are elsewhere in `new`, and has all descriptors know of that, or none.
    fn tell(&self, state: &mut State, new: &GuestMemory) -> io::Result<()> {
        for (part, fd) in state.parts.iter_mut().zip(&self.fds) {
            if fd.has_to_rest(new) || !part.stays(&state.memory, new) {
                part.stop(&**fd)?;
            }
        }
        for (position, fd) in self.fds.iter().enumerate() {
            let Err(error) = fd.set_memory(new) else { continue };
            for told in self.fds.iter().take(position) {
                told.set_memory(&state.memory)?;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Serves the rings again that were stopped because of their memory, and have some.
    fn go_on(&self, state: &mut State) {
        if !state.is_on {
            return;
        }
        for (part, fd) in state.parts.iter_mut().zip(&self.fds) {
            if part.is_in(&state.memory)
                && let Err(error) = part.start(&**fd, state.features, &state.memory)
            {
                tracing::error!(%error, "vhost does not go on");
                part.rings.iter().for_each(VhostRing::break_down);
            }
        }
    }

    fn stop_all(&self, state: &mut State) {
        state.is_on = false;
        for (part, fd) in state.parts.iter_mut().zip(&self.fds) {
            if let Err(error) = part.stop(&**fd) {
                tracing::error!(%error, "vhost does not stop");
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop_all(&mut lock(&self.state));
        // What serves the next life of the machine does not keep this one's memory.
        for fd in &self.fds {
            if let Err(error) = fd.set_memory(&GuestMemory::new()) {
                tracing::error!(%error, "vhost keeps guest RAM");
            }
        }
    }
}

impl Part {
    fn start(&mut self, fd: &dyn VhostFd, features: u64, memory: &GuestMemory) -> io::Result<()> {
        if self.runs || self.rings.is_empty() {
            return Ok(());
        }
        // Also after an error: a part of them may run.
        self.runs = true;
        fd.start(features, &self.rings, memory)?;
        // The driver may have notified before, and the kernel has found nothing to be done then.
        self.rings.iter().for_each(VhostRing::kick);
        Ok(())
    }

    fn stop(&mut self, fd: &dyn VhostFd) -> io::Result<()> {
        if !self.runs {
            return Ok(());
        }
        let bases = fd.stop(&self.rings)?;
        self.runs = false;
        for (ring, base) in self.rings.iter_mut().zip(bases) {
            // What the kernel has taken it has given back.
            (ring.queue.next_available, ring.queue.next_used) = (base, base);
        }
        Ok(())
    }

    fn is_in(&self, memory: &GuestMemory) -> bool {
        self.rings.iter().all(|ring| is_in(memory, &ring.queue))
    }

    /// Whether all rings are at the same addresses of this process in both.
    fn stays(&self, old: &GuestMemory, new: &GuestMemory) -> bool {
        let mut areas = self.rings.iter().flat_map(|ring| areas(&ring.queue));
        areas.all(|area| place(old, area) == place(new, area))
    }
}

/// Address and length of each area of a queue (virtio 1.3, section 2.7).
pub(in crate::virtio) fn areas(queue: &QueueState) -> [(u64, usize); 3] {
    let size = usize::from(queue.size);
    let ring = |element: usize| size.saturating_mul(element).saturating_add(6);
    [
        (queue.descriptor_table, size.saturating_mul(16)),
        (queue.available_ring, ring(2)),
        (queue.used_ring, ring(8)),
    ]
}

fn is_in(memory: &GuestMemory, queue: &QueueState) -> bool {
    areas(queue).into_iter().all(|area| place(memory, area).is_some())
}

/// Where an area is in this process, if it is in one region.
pub(in crate::virtio) fn place(memory: &GuestMemory, (address, length): (u64, usize)) -> Option<usize> {
    let slice = memory.get_slice(GuestAddress(address), length).ok()?;
    Some(slice.ptr_guard().as_ptr() as usize)
}
