//! What is done with the chains of the queue of free page hints (virtio 1.3, section 5.5.6.5).

use std::sync::Arc;

use vm_memory::Address;
use vmm_memory::GuestMemory;

use super::shared::Shared;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Chains of one batch.
const BATCH: usize = 32;

/// Bytes of a command id.
const COMMAND: u32 = 4;

pub(super) struct HintQueue {
    shared: Arc<Shared>,
}

impl HintQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A command id is written for the device, pages are lent to it.
    fn take(&self, chain: &Chain, memory: &GuestMemory) -> Result<(), QueueError> {
        let counters = self.shared.counters();
        match chain.readable().len() {
            0 => {}
            COMMAND => {
                let mut id = [0; COMMAND as usize];
                chain.readable().read(memory, &mut id)?;
                self.shared.with_hints(|hints| hints.hear(u32::from_le_bytes(id)));
            }
            _ => counters.broken.one(),
        }
        let taken: u64 = self.shared.with_hints(|hints| {
            let pieces = chain.writable().iter();
            pieces.map(|piece| hints.take(piece.address.raw_value(), piece.length.into())).sum()
        });
        counters.hinted.add(taken);
        Ok(())
    }
}

impl ServeQueue for HintQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
            self.take(&chain, memory)?;
            queue.push(memory, chain, 0)?;
        }
        Ok(Batch::Full)
    }
}
