//! What is done with the requests of the entropy device.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_core::LogLimit;
use vmm_memory::GuestMemory;

use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Most bytes that one request gets.
pub const REQUEST: usize = 4096;

/// Requests of one batch.
const BATCH: usize = 16;

/// The request queue (section 5.4.2).
pub(super) struct RequestQueue {
    bytes: Box<[u8; REQUEST]>,
    log: LogLimit,
}

impl RequestQueue {
    pub(super) fn new() -> Self {
        Self { bytes: Box::new([0; REQUEST]), log: LogLimit::default() }
    }

    /// Fills what a request has room for, and returns how many bytes that are. The host's kernel gives as many as it is asked
    /// for, once it has been seeded; if it does not, the request gets none.
    fn fill(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<u32, QueueError> {
        let room = chain.writable().len();
        let wanted = usize::try_from(room).map_or(REQUEST, |room| room.min(REQUEST));
        let bytes = self.bytes.get_mut(..wanted).unwrap_or_default();
        let filled = match random(bytes) {
            Ok(filled) => filled,
            Err(error) => {
                if let Some(left_out) = self.log.permit() {
                    tracing::error!(%error, left_out, "the host has no entropy for the guest");
                }
                0
            }
        };
        let bytes = bytes.get(..filled).unwrap_or_default();
        chain.writable().write(memory, bytes)?;
        Ok(u32::try_from(filled).unwrap_or(room))
    }
}

/// Random bytes into the front of `bytes`, as many as there are without waiting.
fn random(bytes: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| getrandom(&mut *bytes, GetRandomFlags::NONBLOCK))
}

impl ServeQueue for RequestQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
            let written = self.fill(&chain, memory)?;
            queue.push(memory, chain, written)?;
        }
        Ok(Batch::Full)
    }
}
