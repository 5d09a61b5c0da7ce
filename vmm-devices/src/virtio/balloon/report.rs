//! What is done with the chains of the queue of free page reports (virtio 1.3, section 5.5.6.7).
//!
//! A chain is a list of buffers that are free until the driver has it back. Long ones are given back in steps.

use std::sync::Arc;

use vm_memory::Address;
use vmm_memory::{GuestMemory, RamRegion};

use super::give_back::{self, Giver};
use super::shared::Shared;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Steps of one batch, and bytes after which it ends.
const STEPS: usize = 32;
const BYTES: u64 = 64 << 20;

pub(super) struct ReportQueue {
    shared: Arc<Shared>,
    giver: Arc<Giver>,
    /// Whether the driver may fill free pages with something (VIRTIO_BALLOON_F_PAGE_POISON).
    may_poison: bool,
    /// The chain that is being worked on, and how many bytes of it are done.
    current: Option<(Chain, u32)>,
}

impl ReportQueue {
    pub(super) fn new(shared: Arc<Shared>, giver: Arc<Giver>, may_poison: bool) -> Self {
        Self { shared, giver, may_poison, current: None }
    }

    /// Whether the contents of `region` may go. A driver that fills free pages finds them filled (section 5.5.6.7.2): what is given
    /// back reads as zero, so it has to be zero.
    fn may_lose(&self, region: &RamRegion) -> bool {
        !self.may_poison || (self.shared.poison() == 0 && region.is_zero_when_discarded())
    }

    /// Gives the next step of a chain back of which `done` bytes are done; how many bytes that was, 0 at its end.
    fn step(&self, chain: &Chain, done: u32, memory: &GuestMemory) -> u32 {
        let Some(piece) = chain.writable().split_at(done).1.iter().next() else { return 0 };
        let start = piece.address.raw_value();
        let length = give_back::step(memory, start, piece.length.into());
        self.giver.report(memory, start, length, |region| self.may_lose(region));
        // At most the piece's.
        u32::try_from(length).unwrap_or(piece.length)
    }
}

impl ServeQueue for ReportQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        let mut bytes = 0_u64;
        for _ in 0..STEPS {
            if bytes >= BYTES {
                break;
            }
            let (chain, done) = match self.current.take() {
                Some(current) => current,
                None => match queue.pop(memory)? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Batch::Empty),
                },
            };
            match self.step(&chain, done, memory) {
                0 => {
                    if !chain.readable().is_empty() {
                        self.giver.counters().broken.one();
                    }
                    queue.push(memory, chain, 0)?;
                }
                step => {
                    bytes = bytes.saturating_add(step.into());
                    self.current = Some((chain, done.saturating_add(step)));
                }
            }
        }
        Ok(Batch::Full)
    }
}
