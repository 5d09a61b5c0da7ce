//! The split virtqueue (virtio 1.3, section 2.7), as the device sees it.
//!
//! Ring indices are those of the virtio-queue crate; chains are walked here, each descriptor read once, and bounded
//! (`chain.rs`). When to notify is in `notify.rs`, apart from the memory that it is about, so that both halves can be
//! checked as models.
//!
//! Whoever gets a [`QueueError`] gives the queue up until it is reset.

mod buffers;
mod chain;
mod in_flight;
mod notify;
mod setup;
mod state;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::fmt;
use std::num::Wrapping;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_memory::GuestMemory;

pub use buffers::{AccessError, Buffer, Buffers};
pub use chain::{Chain, ChainError};
use chain::{Table, Walk};
use in_flight::InFlight;
use notify::{Interrupt, Words};
pub use setup::SetupError;
use setup::{Areas, FLAGS, INDEX};
pub use state::QueueState;

use super::features;
use crate::sync::Ordering;

/// A flag of the used ring, and one of the available ring, for queues without EVENT_IDX.
const NO_NOTIFY: u16 = (VRING_USED_F_NO_NOTIFY & 0xffff) as u16;
const NO_INTERRUPT: u16 = (VRING_AVAIL_F_NO_INTERRUPT & 0xffff) as u16;

/// The driver has broken the ring, or guest RAM under it is gone.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The driver made more buffers available than there are descriptors, or took some back.
    #[error("the available index went from {from} to {to} in a queue of {size}")]
    Index {
        /// What was taken so far.
        from: u16,
        /// What the driver says.
        to: u16,
        /// Number of descriptors.
        size: u16,
    },
    /// A chain was made available a second time, before it was used.
    #[error("the chain of descriptor {head} is available while it is in flight")]
    Duplicate {
        /// Its first descriptor.
        head: u16,
    },
    /// A chain comes back to a queue that has not given it out.
    #[error("the chain of descriptor {head} is not in flight")]
    NotInFlight {
        /// Its first descriptor.
        head: u16,
    },
    /// The chain of descriptors is none.
    #[error("the chain of descriptor {head}")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// What is wrong with it.
        #[source]
        source: ChainError,
    },
    /// Guest RAM of the rings is gone.
    #[error("the rings cannot be accessed")]
    Rings(#[source] GuestMemoryError),
    /// Guest RAM of a buffer is gone.
    #[error("a buffer cannot be accessed")]
    Buffer(#[from] AccessError),
}

/// One split virtqueue that the driver has enabled.
pub struct Queue {
    ring: virtio_queue::Queue,
    index: usize,
    indirect: bool,
    /// The driver's index when it was read last.
    available: u16,
    /// The used index when the driver was told of it last.
    told: u16,
    in_flight: InFlight,
    /// The buffer list of the chain that was used last, for the next one.
    spare: Vec<Buffer>,
}

impl Queue {
    /// The queue as the driver has set it up, or as it was when it was stopped. `features` are those that were negotiated.
    ///
    /// # Errors
    /// [`SetupError`]: size or addresses are none that a queue can have, or not in guest RAM.
    pub fn new(state: &QueueState, features: u64, memory: &GuestMemory) -> Result<Self, SetupError> {
        let event_idx = features & features::EVENT_IDX != 0;
        let ring = setup::ring(state, event_idx, memory)?;
        Ok(Self {
            ring,
            index: state.index,
            indirect: features & features::INDIRECT_DESC != 0,
            available: state.next_available,
            told: state.next_used,
            in_flight: InFlight::new(state.size),
            spare: Vec::new(),
        })
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// How many chains were taken and not yet used.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.count()
    }

    /// Takes the next chain; `None`: there is none at the moment.
    ///
    /// # Errors
    /// The driver has broken the ring.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        let next = self.ring.next_avail();
        if next == self.available && !self.look(memory)? {
            return Ok(None);
        }
        let areas = self.areas();
        let head: u16 =
            memory.load(areas.available_entry(next), Ordering::Relaxed).map_err(QueueError::Rings)?;
        let head = u16::from_le(head);
        let walk = Walk {
            memory,
            table: Table::direct(areas.descriptors, areas.size),
            limit: areas.size,
            indirect: self.indirect,
        };
        let buffers = std::mem::take(&mut self.spare);
        let chain = walk.from(head, buffers).map_err(|source| QueueError::Chain { head, source })?;
        if !self.in_flight.insert(head) {
            return Err(QueueError::Duplicate { head });
        }
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// How many chains are available that were not taken.
    ///
    /// # Errors
    /// The driver has broken the ring.
    pub fn available(&mut self, memory: &GuestMemory) -> Result<u16, QueueError> {
        self.look(memory)?;
        Ok(self.available.wrapping_sub(self.ring.next_avail()))
    }

    /// Gives a chain back, in whose writable buffers `written` bytes were written, from the first.
    ///
    /// # Errors
    /// Guest RAM is gone; the chain is not of this queue.
    pub fn push(&mut self, memory: &GuestMemory, chain: Chain, written: u32) -> Result<(), QueueError> {
        let head = chain.head();
        debug_assert!(written <= chain.writable().len(), "more was written than there is room for");
        if !self.in_flight.remove(head) {
            return Err(QueueError::NotInFlight { head });
        }
        self.spare = chain.into_buffers();
        self.ring.add_used(memory, head, written).map_err(rings)
    }

    /// Gives several chains back so that the driver finds all of them or none, each with how many bytes were written.
    ///
    /// # Errors
    /// As of [`push`](Self::push).
    pub fn push_all(
        &mut self,
        memory: &GuestMemory,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), QueueError> {
        let areas = self.areas();
        let mut used = self.ring.next_used();
        for (chain, written) in chains {
            let head = chain.head();
            debug_assert!(written <= chain.writable().len(), "more was written than there is room for");
            if !self.in_flight.remove(head) {
                return Err(QueueError::NotInFlight { head });
            }
            self.spare = chain.into_buffers();
            let [one, other] = [u32::from(head), written].map(u32::to_le_bytes);
            memory
                .write_slice(&[one, other].concat(), areas.used_element(used))
                .map_err(QueueError::Rings)?;
            used = used.wrapping_add(1);
        }
        // After the elements (section 2.7.8.2).
        memory.store(used.to_le(), areas.used(INDEX), Ordering::Release).map_err(QueueError::Rings)?;
        self.ring.set_next_used(used);
        Ok(())
    }

    /// Puts the chain that was taken last back, as if it had not been taken. Nothing was used since.
    pub fn put_back(&mut self, chain: Chain) {
        if self.in_flight.remove(chain.head()) {
            self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(1));
        }
        self.spare = chain.into_buffers();
    }

    /// Says that the driver need not notify: its chains are being looked for. What was said before stays said where
    /// EVENT_IDX was negotiated.
    ///
    /// # Errors
    /// Guest RAM is gone.
    pub fn busy(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.ring.event_idx_enabled() {
            return Ok(());
        }
        memory
            .store(NO_NOTIFY.to_le(), self.areas().used(FLAGS), Ordering::Relaxed)
            .map_err(QueueError::Rings)
    }

    /// Says that the driver is to notify when it makes the next chain available. `true`: it has done so meanwhile, and
    /// perhaps without a notification; nobody may go to sleep.
    ///
    /// # Errors
    /// Guest RAM is gone.
    pub fn rest(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let next = self.ring.next_avail();
        notify::rest(&RingWords { queue: &self.ring, memory }, next).map_err(QueueError::Rings)
    }

    /// How many chains were used since [`needs_interrupt`](Self::needs_interrupt) was asked.
    #[must_use]
    pub fn untold(&self) -> u16 {
        self.ring.next_used().wrapping_sub(self.told)
    }

    /// Whether the driver wants to be told of the chains that were used since the last time this was asked.
    ///
    /// # Errors
    /// Guest RAM is gone.
    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let used = self.ring.next_used();
        let told = std::mem::replace(&mut self.told, used);
        let words = RingWords { queue: &self.ring, memory };
        notify::needs_interrupt(&words, told, used).map_err(QueueError::Rings)
    }

    /// What a queue has to know to go on where this one is. Chains in flight are not in it.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            version: QueueState::VERSION,
            index: self.index,
            size: self.ring.size(),
            descriptor_table: self.ring.desc_table(),
            available_ring: self.ring.avail_ring(),
            used_ring: self.ring.used_ring(),
            next_available: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }

    /// Reads the driver's index; whether there is something new.
    fn look(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let Wrapping(available) = self.ring.avail_idx(memory, Ordering::Acquire).map_err(rings)?;
        let (next, size) = (self.ring.next_avail(), self.ring.size());
        if available.wrapping_sub(next) > size {
            return Err(QueueError::Index { from: next, to: available, size });
        }
        self.available = available;
        Ok(available != next)
    }

    fn areas(&self) -> Areas {
        Areas::of(&self.ring)
    }
}

/// virtio-queue's error about rings whose addresses were checked.
fn rings(error: virtio_queue::Error) -> QueueError {
    QueueError::Rings(match error {
        virtio_queue::Error::GuestMemory(error) => error,
        other => GuestMemoryError::IOError(std::io::Error::other(other.to_string())),
    })
}

/// The words of the rings by which the two sides ask for notifications, in guest memory.
struct RingWords<'a> {
    queue: &'a virtio_queue::Queue,
    memory: &'a GuestMemory,
}

impl RingWords<'_> {
    fn load(&self, address: GuestAddress) -> Result<u16, GuestMemoryError> {
        self.memory.load(address, Ordering::Relaxed).map(u16::from_le)
    }
}

impl Words for RingWords<'_> {
    type Error = GuestMemoryError;

    fn available(&self) -> Result<u16, GuestMemoryError> {
        self.load(Areas::of(self.queue).available(INDEX))
    }

    fn ask_for_notification(&self, next: u16) -> Result<(), GuestMemoryError> {
        let areas = Areas::of(self.queue);
        let (word, address) = if self.queue.event_idx_enabled() {
            (next, areas.available_event())
        } else {
            (0, areas.used(FLAGS))
        };
        self.memory.store(word.to_le(), address, Ordering::Relaxed)
    }

    fn interrupt(&self) -> Result<Interrupt, GuestMemoryError> {
        let areas = Areas::of(self.queue);
        if self.queue.event_idx_enabled() {
            return self.load(areas.used_event()).map(Interrupt::After);
        }
        let flags = self.load(areas.available(FLAGS))?;
        let none = flags & NO_INTERRUPT != 0;
        Ok(if none { Interrupt::Never } else { Interrupt::Always })
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.in_flight.count();
        f.debug_struct("Queue").field("state", &self.state()).field("in_flight", &in_flight).finish()
    }
}
