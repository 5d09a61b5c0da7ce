//! What becomes of requests when the back end has gone: they are answered with an error, so that nothing in the guest waits for what
//! will not come. Which requests it had taken is not known; they are taken for the last ones, in their order.

use std::sync::Arc;

use vmm_memory::GuestMemory;

use super::class::Class;
use super::counters::count;
use super::peer::VhostUser;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Most requests of a batch.
const BATCH: usize = 64;

/// VIRTIO_BLK_S_IOERR (virtio 1.3, section 5.2.6).
const IO_ERROR: u8 = 1;

/// `struct fuse_in_header` of linux/fuse.h as far as its number, and `struct fuse_out_header`.
const FUSE_IN: u32 = 16;
const FUSE_OUT: u32 = 16;

/// Whether a queue of a network device is for receiving: the first of its pair (section 5.1.2).
fn receives(index: usize) -> bool {
    index.is_multiple_of(2)
}

/// One queue without a back end.
pub(super) struct Remains {
    user: Arc<VhostUser>,
    index: usize,
}

impl Remains {
    pub(super) fn new(user: Arc<VhostUser>, index: usize) -> Self {
        Self { user, index }
    }

    /// Bytes that were written.
    fn answer(&self, chain: &Chain, memory: &GuestMemory) -> Result<u32, QueueError> {
        match self.user.class {
            Class::Block { .. } => fail_block(chain, memory),
            Class::Fs { .. } => fail_fuse(chain, memory),
            // What is sent has no answer.
            Class::Net { .. } => Ok(0),
        }
    }
}

impl ServeQueue for Remains {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        if matches!(self.user.class, Class::Net { .. }) && receives(self.index) {
            return Ok(Batch::Waiting);
        }
        for _ in 0..BATCH {
            let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
            let written = self.answer(&chain, memory)?;
            count(&self.user.counters.failed_requests);
            queue.push(memory, chain, written)?;
        }
        Ok(Batch::Full)
    }
}

/// The status is the last byte (section 5.2.6).
fn fail_block(chain: &Chain, memory: &GuestMemory) -> Result<u32, QueueError> {
    let writable = chain.writable();
    let Some(before) = writable.len().checked_sub(1) else { return Ok(0) };
    writable.split_at(before).1.write(memory, &[IO_ERROR])?;
    Ok(writable.len())
}

/// An answer has the number of its request; one without room for an answer has none.
fn fail_fuse(chain: &Chain, memory: &GuestMemory) -> Result<u32, QueueError> {
    let (readable, writable) = (chain.readable(), chain.writable());
    if readable.len() < FUSE_IN || writable.len() < FUSE_OUT {
        return Ok(0);
    }
    let mut number = [0; 8];
    readable.split_at(8).1.split_at(8).0.read(memory, &mut number)?;
    let mut answer = [0; 16];
    let words = [FUSE_OUT.to_le_bytes(), (-libc::ENOTCONN).to_le_bytes()];
    let bytes = words.into_iter().flatten().chain(number);
    answer.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    writable.split_at(FUSE_OUT).0.write(memory, &answer)?;
    Ok(FUSE_OUT)
}
