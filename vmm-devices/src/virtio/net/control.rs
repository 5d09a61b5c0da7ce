//! What is done with the commands of the control queue (virtio 1.3, section 5.1.6.5).

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};
use vmm_memory::GuestMemory;

use super::counters::add;
use super::offloads::bit;
use super::shared::Shared;
use crate::virtio::queue::{Buffers, Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Commands of one batch. Each takes a lock of the host's.
const BATCH: usize = 4;

/// Bytes of class and command, before what belongs to them.
const COMMAND: u32 = 2;

/// What carries the commands out.
pub(in crate::virtio) trait Carry: Send {
    /// Called before anything else of a batch.
    fn begin(&self) {}

    /// Whether the driver has accepted this feature.
    fn has(&self, feature: u32) -> bool;

    /// So many pairs are used, the first ones. Whether that is done.
    fn use_pairs(&self, pairs: u16) -> bool;

    /// This may be left to the guest, as bits of its features. Whether that is done.
    fn leave(&self, bits: u64) -> bool;

    /// A command was none, or is not done.
    fn refused(&self) {}
}

/// The control queue.
pub(in crate::virtio) struct ControlQueue<C> {
    carrier: C,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// So many pairs are used.
    UsePairs(u16),
    /// What may be left to the guest.
    Leave(u64),
}

impl<C: Carry> ControlQueue<C> {
    pub(in crate::virtio) fn new(carrier: C) -> Self {
        Self { carrier }
    }

    /// Reads a command; `None`: it is none that this device has.
    fn read(&self, chain: &Chain, memory: &GuestMemory) -> Result<Option<Command>, QueueError> {
        let (command, rest) = chain.readable().split_at(COMMAND);
        let Some([class, command]) = read(command, memory)? else { return Ok(None) };
        let has = |feature| self.carrier.has(feature);
        Ok(match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(VIRTIO_NET_F_MQ) => {
                read(rest, memory)?.map(|bytes| Command::UsePairs(u16::from_le_bytes(bytes)))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
                if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
            {
                read(rest, memory)?.map(|bytes| Command::Leave(u64::from_le_bytes(bytes)))
            }
            _ => None,
        })
    }

    /// Does what is asked for; whether that is done.
    fn perform(&self, command: Command) -> bool {
        match command {
            Command::UsePairs(pairs) => self.carrier.use_pairs(pairs),
            Command::Leave(bits) => self.carrier.leave(bits),
        }
    }
}

impl Carry for Arc<Shared> {
    fn begin(&self) {
        self.set_up();
    }

    fn has(&self, feature: u32) -> bool {
        Shared::has(self, bit(feature))
    }

    fn use_pairs(&self, pairs: u16) -> bool {
        (1..=self.pairs.len()).contains(&pairs.into()) && self.is_done(Shared::use_pairs(self, pairs.into()))
    }

    fn leave(&self, bits: u64) -> bool {
        self.may_leave(bits) && self.is_done(Shared::leave(self, bits))
    }

    fn refused(&self) {
        add(&self.counters.refused_commands, 1);
    }
}

impl Shared {
    fn is_done(&self, done: io::Result<()>) -> bool {
        done.inspect_err(|error| self.failed("do what the guest asks for", error)).is_ok()
    }
}

/// Exactly so many bytes, or `None`.
fn read<const LENGTH: usize>(
    buffers: Buffers<'_>,
    memory: &GuestMemory,
) -> Result<Option<[u8; LENGTH]>, QueueError> {
    if buffers.len() as usize != LENGTH {
        return Ok(None);
    }
    let mut bytes = [0; LENGTH];
    buffers.read(memory, &mut bytes)?;
    Ok(Some(bytes))
}

impl<C: Carry> ServeQueue for ControlQueue<C> {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        self.carrier.begin();
        for _ in 0..BATCH {
            let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
            let done = self.read(&chain, memory)?.is_some_and(|command| self.perform(command));
            if !done {
                self.carrier.refused();
            }
            let ack = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR }.to_le_bytes();
            let (place, _) = chain.writable().split_at(1);
            let written = place.len();
            place.write(memory, ack.get(..written as usize).unwrap_or_default())?;
            queue.push(memory, chain, written)?;
        }
        Ok(Batch::Full)
    }
}
