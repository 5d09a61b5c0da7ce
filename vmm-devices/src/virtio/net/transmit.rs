//! What is done with the chains of a transmit queue: one frame each, behind its header (virtio 1.3, section 5.1.6.2).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_memory::{GuestMemory, Scattered};

use super::counters::add;
use super::frame::{BATCH, BATCH_BYTES, ETHERNET, HEADER, LONGEST};
use super::shared::{Lane, Shared, retry};
use crate::Wakeup;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// When a frame is offered again that the host has no room for.
const RETRY: Duration = Duration::from_millis(1);

/// A frame that is to go, or waits.
struct Frame {
    chain: Chain,
    /// The rate limiter has let it pass.
    is_admitted: bool,
    /// It was counted as one that waits for that.
    is_late: bool,
}

/// One transmit queue.
pub(super) struct TransmitQueue {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    waiting: Option<Frame>,
}

impl TransmitQueue {
    pub(super) fn new(shared: Arc<Shared>, lane: Arc<Lane>) -> Self {
        Self { shared, lane, waiting: None }
    }

    /// Gives a frame to the host, or drops it. An error: it has to wait.
    fn send(&self, frame: &mut Frame, pieces: &mut Scattered<'_>) -> Result<(), Later> {
        let (counters, data) = (&self.shared.counters, frame.chain.readable());
        pieces.clear();
        let gathered = data.iter().try_for_each(|piece| pieces.push(piece.address, piece.length.into()));
        if gathered.is_err() || !is_frame(data.len()) || pieces.pieces() > Scattered::MOST_PIECES {
            self.leave_line();
            add(&counters.refused_frames, 1);
            return Ok(());
        }
        if self.shared.is_lost() {
            self.leave_line();
            add(&counters.transmitted_failed, 1);
            return Ok(());
        }
        let bytes = u64::from(data.len().saturating_sub(HEADER));
        if !frame.is_admitted && !self.lane.admit(&self.shared.options.transmit, bytes) {
            add(&counters.transmitted_throttled, (!frame.is_late).into());
            frame.is_late = true;
            return Err(Later);
        }
        frame.is_admitted = true;
        match retry(|| pieces.write_to(self.lane.link.as_fd())) {
            Ok(_) => {
                add(&counters.transmitted_frames, 1);
                add(&counters.transmitted_bytes, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.lane.wake_in(RETRY);
                return Err(Later);
            }
            Err(error) => {
                add(&counters.transmitted_failed, 1);
                self.shared.failed("take frames of the guest", &error);
            }
        }
        Ok(())
    }

    /// Nothing here waits for the rate limiter any more.
    fn leave_line(&self) {
        self.shared.options.transmit.leave(&self.lane.bell);
    }
}

/// A frame has to wait for what wakes the lane.
struct Later;

/// Whether there is a header and a frame behind it in so many bytes, and no more than the longest.
fn is_frame(length: u32) -> bool {
    (HEADER.saturating_add(ETHERNET)..=LONGEST).contains(&length)
}

impl ServeQueue for TransmitQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        let mut pieces = Scattered::new(memory);
        let mut bytes = 0_u64;
        for _ in 0..BATCH {
            if bytes >= BATCH_BYTES {
                break;
            }
            let mut frame = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match queue.pop(memory)? {
                    Some(chain) => Frame { chain, is_admitted: false, is_late: false },
                    None => return Ok(Batch::Empty),
                },
            };
            bytes = bytes.saturating_add(frame.chain.readable().len().into());
            if let Err(Later) = self.send(&mut frame, &mut pieces) {
                self.waiting = Some(frame);
                return Ok(Batch::Waiting);
            }
            queue.push(memory, frame.chain, 0)?;
        }
        Ok(Batch::Full)
    }

    fn wakeups(&self) -> Vec<Arc<dyn Wakeup>> {
        vec![Arc::clone(&self.lane.timer) as _, Arc::clone(&self.lane.bell) as _]
    }

    fn notified(&mut self, rings: u64) {
        add(&self.shared.counters.notifications, rings);
    }

    fn interrupting(&mut self) {
        add(&self.shared.counters.interrupts, 1);
    }

    fn untouched(&self) -> u16 {
        self.waiting.is_some().into()
    }
}

impl Drop for TransmitQueue {
    fn drop(&mut self) {
        self.leave_line();
    }
}
