//! What is done with the chains of the console's two queues.

use std::sync::Arc;

use vmm_memory::GuestMemory;

use super::shared::Shared;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// The queue of input; the other one is that of output (section 5.3.2).
pub(super) const RECEIVE: usize = 0;

/// Bytes that are copied at once.
const PIECE: usize = 4096;

/// Chains, or pieces of long ones, of one batch.
const BATCH: usize = 16;

/// Input, for which the driver lends buffers.
pub(super) struct ReceiveQueue {
    shared: Arc<Shared>,
    piece: Box<[u8; PIECE]>,
}

impl ReceiveQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, piece: Box::new([0; PIECE]) }
    }
}

impl ServeQueue for ReceiveQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        for _ in 0..BATCH {
            if !self.shared.has_input() {
                return Ok(Batch::Waiting);
            }
            let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
            let room = usize::try_from(chain.writable().len()).map_or(PIECE, |room| room.min(PIECE));
            let piece = self.piece.get_mut(..room).unwrap_or_default();
            let count = self.shared.take(piece);
            chain.writable().write(memory, piece.get(..count).unwrap_or_default())?;
            // At most a piece, so it fits.
            queue.push(memory, chain, u32::try_from(count).unwrap_or(0))?;
        }
        Ok(Batch::Full)
    }
}

/// Output, as long as the driver makes it.
pub(super) struct TransmitQueue {
    shared: Arc<Shared>,
    piece: Box<[u8; PIECE]>,
    /// The chain that is being written, and how far it is.
    current: Option<(Chain, u32)>,
}

impl TransmitQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, piece: Box::new([0; PIECE]), current: None }
    }

    /// Writes the next piece of a chain of which `done` bytes are written; how many are then, or `None` at its end.
    fn write(&mut self, chain: &Chain, done: u32, memory: &GuestMemory) -> Result<Option<u32>, QueueError> {
        let (_, rest) = chain.readable().split_at(done);
        let length = usize::try_from(rest.len()).map_or(PIECE, |length| length.min(PIECE));
        let piece = self.piece.get_mut(..length).unwrap_or_default();
        rest.read(memory, piece)?;
        self.shared.write(piece);
        let done = done.saturating_add(u32::try_from(length).unwrap_or(rest.len()));
        Ok((done < chain.readable().len()).then_some(done))
    }
}

impl ServeQueue for TransmitQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        for _ in 0..BATCH {
            let (chain, done) = match self.current.take() {
                Some(current) => current,
                None => match queue.pop(memory)? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Batch::Empty),
                },
            };
            match self.write(&chain, done, memory)? {
                Some(done) => self.current = Some((chain, done)),
                None => queue.push(memory, chain, 0)?,
            }
        }
        Ok(Batch::Full)
    }
}
