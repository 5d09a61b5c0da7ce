//! What is done with the chains of the three queues (virtio 1.3, section 5.10.2).

use std::sync::Arc;
use std::time::Instant;

use vmm_memory::GuestMemory;

use super::hub::{Hub, room_for_data};
use super::packet::{HEADER, HEADER_LENGTH, Header};
use super::shared::{By, Shared};
use crate::virtio::queue::{Buffers, Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Packets to the guest, packets of the guest; the third one is that of events.
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;

/// Packets of one batch.
const BATCH: usize = 32;

/// A buffer for copies.
type Piece = Box<[u8]>;

fn piece() -> Piece {
    vec![0; PIECE].into()
}

/// The queue in which the driver lends buffers for packets.
pub(super) struct ReceiveQueue {
    shared: Arc<Shared>,
    piece: Piece,
}

impl ReceiveQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, piece: piece() }
    }
}

impl ServeQueue for ReceiveQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        let Self { shared, piece } = self;
        shared.with(By::ReceiveQueue, |hub, now| receive(hub, queue, memory, piece, now))
    }
}

/// Gives the guest packets, as long as there are some and it has buffers.
fn receive(
    hub: &mut Hub,
    queue: &mut Queue,
    memory: &GuestMemory,
    piece: &mut [u8],
    now: Instant,
) -> Result<Batch, QueueError> {
    for _ in 0..BATCH {
        if !hub.has_packets() {
            return Ok(Batch::Waiting);
        }
        let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
        let Some(room) = room_for_data(chain.writable().len()) else {
            hub.malformed();
            queue.push(memory, chain, 0)?;
            continue;
        };
        let data = piece.get_mut(..room.min(PIECE)).unwrap_or_default();
        match hub.next_packet(data, now) {
            Some((header, length)) => {
                let data = data.get(..length).unwrap_or_default();
                write(&chain, memory, &header, data)?;
                queue.push(memory, chain, HEADER_LENGTH.saturating_add(header.len))?;
            }
            // It has no room for data, and nothing else is there.
            None if room == 0 => {
                hub.malformed();
                queue.push(memory, chain, 0)?;
            }
            None => queue.put_back(chain),
        }
    }
    Ok(Batch::Full)
}

fn write(chain: &Chain, memory: &GuestMemory, header: &Header, data: &[u8]) -> Result<(), QueueError> {
    let (head, tail) = chain.writable().split_at(HEADER_LENGTH);
    head.write(memory, &header.bytes())?;
    Ok(tail.write(memory, data)?)
}

/// The queue of what the guest sends.
pub(super) struct TransmitQueue {
    shared: Arc<Shared>,
    piece: Piece,
}

impl TransmitQueue {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, piece: piece() }
    }
}

impl ServeQueue for TransmitQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        let Self { shared, piece } = self;
        shared.with(By::Other, |hub, now| {
            for _ in 0..BATCH {
                if !hub.takes_packets() {
                    hub.holds_transmit = true;
                    return Ok(Batch::Waiting);
                }
                let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
                transmit(hub, chain.readable(), memory, piece, now)?;
                queue.push(memory, chain, 0)?;
            }
            Ok(Batch::Full)
        })
    }
}

/// Takes one packet of the guest.
fn transmit(
    hub: &mut Hub,
    packet: Buffers<'_>,
    memory: &GuestMemory,
    piece: &mut [u8],
    now: Instant,
) -> Result<(), QueueError> {
    let Some(there) = packet.len().checked_sub(HEADER_LENGTH) else {
        hub.malformed();
        return Ok(());
    };
    let (head, data) = packet.split_at(HEADER_LENGTH);
    let mut bytes = [0; HEADER];
    head.read(memory, &mut bytes)?;
    let header = Header::read(&bytes);
    let Some(id) = hub.receive(&header, there, now) else { return Ok(()) };
    // At most as much as the connection had credit for, and as there is.
    let (mut data, _) = data.split_at(header.len);
    while !data.is_empty() {
        let (first, rest) = data.split_at(u32::try_from(PIECE).unwrap_or(u32::MAX));
        let length = usize::try_from(first.len()).unwrap_or(PIECE).min(PIECE);
        let piece = piece.get_mut(..length).unwrap_or_default();
        first.read(memory, piece)?;
        hub.deliver(id, piece);
        data = rest;
    }
    Ok(())
}

/// The queue of events. There is one, that all connections are lost because the guest was moved to another host (section
/// 5.10.6.7): its buffers wait for that.
pub(super) struct EventQueue;

impl ServeQueue for EventQueue {
    fn serve(&mut self, _queue: &mut Queue, _memory: &GuestMemory) -> Result<Batch, QueueError> {
        Ok(Batch::Waiting)
    }
}
