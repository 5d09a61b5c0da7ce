//! What is done with the chains of a receive queue: buffers for frames, each behind its header (virtio 1.3, sections 5.1.6.3
//! and 5.1.6.4).
//!
//! Buffers are taken before a frame is read, so that it is read straight into them. With mergeable buffers that are as many as the
//! longest frame needs. If the driver has not lent so many, the frame is read into a buffer here, and waits until it fits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vmm_memory::{GuestMemory, Scattered};

use super::counters::add;
use super::frame::{BATCH, BATCH_BYTES, HEADER, LONGEST, NUM_BUFFERS};
use super::offloads::bit;
use super::shared::{Lane, Shared, retry};
use crate::Wakeup;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// A frame that was read and that the driver does not have yet.
#[derive(Clone, Copy, Debug)]
struct Ready {
    /// Bytes, with the header.
    length: u32,
    /// It is in [`ReceiveQueue::apart`], and not in the buffers that are held.
    is_apart: bool,
    /// It was counted as one that waits for the rate limiter.
    is_late: bool,
}

/// What came of an attempt.
enum Received {
    /// A frame of so many bytes, which the driver has or which was dropped.
    Frame(u32),
    /// There is none, or it has to wait for something other than buffers.
    Nothing,
    /// There are no buffers for it.
    NoBuffers,
}

/// The pieces of the first chains that are held, on the snapshot of a batch.
struct Gathered<'m> {
    pieces: Scattered<'m>,
    /// How many pieces each chain has.
    counts: VecDeque<usize>,
}

impl Gathered<'_> {
    /// Adds those of the next chain; whether it has only pieces that are there, and they are not too many.
    fn push(&mut self, chain: &Chain) -> bool {
        let before = self.pieces.pieces();
        let pushed = chain
            .writable()
            .iter()
            .try_for_each(|buffer| self.pieces.push(buffer.address, buffer.length.into()));
        self.counts.push_back(self.pieces.pieces().saturating_sub(before));
        pushed.is_ok() && self.pieces.pieces() <= Scattered::MOST_PIECES
    }

    /// Forgets those of the first `chains` chains.
    fn drop_front(&mut self, chains: usize) {
        let chains = chains.min(self.counts.len());
        self.pieces.drop_front(self.counts.drain(..chains).sum());
    }

    fn clear(&mut self) {
        self.counts.clear();
        self.pieces.clear();
    }
}

/// One receive queue.
pub(super) struct ReceiveQueue {
    shared: Arc<Shared>,
    pair: usize,
    lane: Arc<Lane>,
    /// Whether a frame may be in several chains.
    is_mergeable: bool,
    /// Chains that were taken, in that order, and in which there is no frame that the driver knows of.
    held: VecDeque<Chain>,
    /// Bytes that they have room for.
    room: u64,
    ready: Option<Ready>,
    apart: Vec<u8>,
}

impl ReceiveQueue {
    pub(super) fn new(shared: Arc<Shared>, pair: usize, lane: Arc<Lane>) -> Self {
        let is_mergeable = shared.has(bit(VIRTIO_NET_F_MRG_RXBUF));
        let (held, apart) = (VecDeque::new(), Vec::new());
        Self { shared, pair, lane, is_mergeable, held, room: 0, ready: None, apart }
    }

    fn receive(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        buffers: &mut Gathered<'_>,
    ) -> Result<Received, QueueError> {
        self.hold(queue, memory, buffers)?;
        match self.held.front() {
            None => return Ok(Received::NoBuffers),
            // There were too many of these to refuse them all now.
            Some(first) if first.writable().len() < HEADER => return Ok(Received::Frame(0)),
            Some(_) => {}
        }
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => match self.read(buffers) {
                Ok(Some(ready)) => ready,
                Ok(None) => return Ok(Received::Frame(0)),
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.shared.failed("give frames for the guest", &error);
                    }
                    return Ok(Received::Nothing);
                }
            },
        };
        self.deliver(ready, queue, memory, buffers)
    }

    /// Takes chains until the longest frame has room, or there are no more. The first of them has room for the header, unless too
    /// many had not.
    fn hold(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        buffers: &mut Gathered<'_>,
    ) -> Result<(), QueueError> {
        let wanted = if self.is_mergeable { LONGEST.into() } else { 1 };
        // Those that are refused are not without number, whatever the driver makes available meanwhile.
        for _ in 0..queue.size() {
            if self.held.front().is_some_and(|chain| chain.writable().len() < HEADER) {
                let Some(chain) = self.held.pop_front() else { break };
                buffers.drop_front(1);
                self.room = self.room.saturating_sub(chain.writable().len().into());
                add(&self.shared.counters.refused_buffers, 1);
                queue.push(memory, chain, 0)?;
                continue;
            }
            if self.room >= wanted {
                break;
            }
            let Some(chain) = queue.pop(memory)? else { break };
            self.room = self.room.saturating_add(chain.writable().len().into());
            self.held.push_back(chain);
        }
        Ok(())
    }

    /// Reads a frame; `None`: it was dropped.
    fn read(&mut self, buffers: &mut Gathered<'_>) -> io::Result<Option<Ready>> {
        let is_apart = !self.gather(buffers);
        let (read, room) = if is_apart {
            self.apart.resize((LONGEST as usize).saturating_add(1), 0);
            let read = retry(|| Ok(rustix::io::read(&*self.lane.link, &mut *self.apart)?))?;
            (read as u64, u64::from(LONGEST))
        } else {
            let pieces = &mut buffers.pieces;
            (retry(|| pieces.read_from(self.lane.link.as_fd(), &mut [0]))?, pieces.len())
        };
        if read == 0 {
            // Nobody is at the other end.
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        let counters = &self.shared.counters;
        match u32::try_from(read) {
            Ok(length) if length < HEADER => add(&counters.received_malformed, 1),
            Ok(length) if read <= room => return Ok(Some(Ready { length, is_apart, is_late: false })),
            _ => add(&counters.received_too_long, 1),
        }
        Ok(None)
    }

    /// Puts together the buffers for a frame; whether it can be read into them, whatever its length.
    fn gather(&self, buffers: &mut Gathered<'_>) -> bool {
        if self.is_mergeable && self.room < LONGEST.into() {
            return false;
        }
        let mut missing = self.held.iter().skip(buffers.counts.len());
        // What is gone by now is found where it is written to.
        let gathered = missing.all(|chain| buffers.push(chain));
        if !gathered {
            buffers.clear();
        }
        gathered
    }

    /// Gives a frame to the driver, or keeps it for later, or drops it.
    fn deliver(
        &mut self,
        mut ready: Ready,
        queue: &mut Queue,
        memory: &GuestMemory,
        buffers: &mut Gathered<'_>,
    ) -> Result<Received, QueueError> {
        if self.room < ready.length.into() {
            if self.is_mergeable && self.held.len() < usize::from(queue.size()) {
                self.ready = Some(ready);
                return Ok(Received::NoBuffers);
            }
            // It has lent all that it can.
            self.leave_line();
            add(&self.shared.counters.received_too_long, 1);
            return Ok(Received::Frame(ready.length));
        }
        let bytes = u64::from(ready.length.saturating_sub(HEADER));
        if !self.lane.admit(&self.shared.options.receive, bytes) {
            add(&self.shared.counters.received_throttled, (!ready.is_late).into());
            ready.is_late = true;
            self.ready = Some(ready);
            return Ok(Received::Nothing);
        }
        if ready.is_apart {
            self.copy(ready.length, memory)?;
        }
        buffers.drop_front(self.give(ready.length, queue, memory)?);
        add(&self.shared.counters.received_frames, 1);
        add(&self.shared.counters.received_bytes, bytes);
        Ok(Received::Frame(ready.length))
    }

    /// Copies the frame that is apart into the buffers that are held, which have room for it.
    fn copy(&self, length: u32, memory: &GuestMemory) -> Result<(), QueueError> {
        let mut rest = self.apart.get(..length as usize).unwrap_or_default();
        for chain in &self.held {
            let count = rest.len().min(chain.writable().len() as usize);
            let (head, tail) = rest.split_at(count);
            chain.writable().write(memory, head)?;
            rest = tail;
        }
        Ok(())
    }

    /// Gives the first buffers that are held to the driver, which have a frame of `length` bytes in them: all at once, as the
    /// header in the first of them says how many they are. Returns that.
    fn give(&mut self, length: u32, queue: &mut Queue, memory: &GuestMemory) -> Result<usize, QueueError> {
        let (mut count, mut left) = (0_u16, length);
        for chain in &self.held {
            count = count.saturating_add(1);
            left = left.saturating_sub(chain.writable().len());
            if left == 0 {
                break;
            }
        }
        if let Some(first) = self.held.front() {
            let (_, place) = first.writable().split_at(NUM_BUFFERS);
            place.write(memory, &count.to_le_bytes())?;
        }
        let (mut left, room) = (length, &mut self.room);
        let chains = self.held.drain(..usize::from(count)).map(|chain| {
            let there = chain.writable().len();
            let written = there.min(left);
            left = left.saturating_sub(written);
            *room = room.saturating_sub(there.into());
            (chain, written)
        });
        queue.push_all(memory, chains)?;
        Ok(count.into())
    }

    /// Nothing here waits for the rate limiter any more.
    fn leave_line(&self) {
        self.shared.options.receive.leave(&self.lane.bell);
    }
}

impl ServeQueue for ReceiveQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        if self.pair == 0 {
            self.shared.set_up();
            self.shared.look_again();
        }
        if !self.shared.is_used(self.pair) || self.shared.is_lost() {
            return Ok(Batch::Waiting);
        }
        let mut buffers = Gathered { pieces: Scattered::new(memory), counts: VecDeque::new() };
        let mut bytes = 0_u64;
        for _ in 0..BATCH {
            if bytes >= BATCH_BYTES {
                break;
            }
            match self.receive(queue, memory, &mut buffers)? {
                Received::Frame(length) => bytes = bytes.saturating_add(length.into()),
                Received::Nothing => {
                    // What was lost just now may be there again for long.
                    if self.pair == 0 {
                        self.shared.look_again();
                    }
                    return Ok(Batch::Waiting);
                }
                Received::NoBuffers => {
                    add(&self.shared.counters.received_no_buffers, 1);
                    return Ok(Batch::Empty);
                }
            }
        }
        Ok(Batch::Full)
    }

    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        let Lane { link, bell, timer } = &*self.lane;
        let mut wakeups: Vec<Arc<dyn Wakeup>> =
            vec![Arc::clone(link) as _, Arc::clone(timer) as _, Arc::clone(bell) as _];
        wakeups.extend(self.shared.link.news().filter(|_| self.pair == 0));
        wakeups
    }

    fn notified(&mut self, rings: u64) {
        add(&self.shared.counters.notifications, rings);
    }

    fn interrupting(&mut self) {
        add(&self.shared.counters.interrupts, 1);
    }

    fn untouched(&self) -> u16 {
        u16::try_from(self.held.len()).unwrap_or(u16::MAX)
    }
}

impl Drop for ReceiveQueue {
    fn drop(&mut self) {
        self.leave_line();
    }
}
