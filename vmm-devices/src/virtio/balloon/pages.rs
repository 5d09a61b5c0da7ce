//! What is done with the chains of the two queues in which pages go into the balloon and come out of it (virtio 1.3, section
//! 5.5.6).
//!
//! A chain is a list of page numbers, 32 bits each. It is read in pieces; those of a piece are sorted, so that pages that follow each
//! other are one range. A driver names 256 (Linux) to 1024 (FreeBSD) at a time, mostly such.

use std::sync::Arc;

use vmm_memory::GuestMemory;

use super::PAGE;
use super::give_back::Giver;
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Page numbers that are taken at once.
const PIECE: u32 = 256;
/// Bytes of a page number.
const NUMBER: u32 = 4;
/// Pieces of one batch.
const BATCH: usize = 4;
/// Most page numbers of a chain; those behind them are refused.
pub(super) const MOST_PAGES: u32 = 1 << 16;

/// Which of the two queues it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Inflate,
    Deflate,
}

pub(super) struct PageQueue {
    direction: Direction,
    giver: Arc<Giver>,
    piece: Box<[u8]>,
    numbers: Vec<u32>,
    /// The chain that is being read, and how many bytes of it are done.
    current: Option<(Chain, u32)>,
}

impl PageQueue {
    pub(super) fn new(direction: Direction, giver: Arc<Giver>) -> Self {
        let piece = vec![0; PIECE.saturating_mul(NUMBER) as usize].into();
        Self { direction, giver, piece, numbers: Vec::with_capacity(PIECE as usize), current: None }
    }

    /// Takes the next piece of a chain of which `done` bytes are done; how many are then, or `None` at its end.
    fn take(&mut self, chain: &Chain, done: u32, memory: &GuestMemory) -> Result<Option<u32>, QueueError> {
        let most = MOST_PAGES.saturating_mul(NUMBER);
        let length = chain.readable().len().min(most);
        let left = length.saturating_sub(done);
        let bytes = (left.min(PIECE.saturating_mul(NUMBER)) / NUMBER).saturating_mul(NUMBER);
        if bytes == 0 {
            self.end(chain);
            return Ok(None);
        }
        let piece = self.piece.get_mut(..bytes as usize).unwrap_or_default();
        chain.readable().split_at(done).1.read(memory, piece)?;
        self.numbers.clear();
        let (numbers, _) = piece.as_chunks::<{ NUMBER as usize }>();
        self.numbers.extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
        self.numbers.sort_unstable();
        self.numbers.dedup();
        for range in self.numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
            let (Some(first), count) = (range.first(), range.len() as u64) else { continue };
            let (start, length) = (u64::from(*first).saturating_mul(PAGE), count.saturating_mul(PAGE));
            match self.direction {
                Direction::Inflate => self.giver.inflate(memory, start, length),
                Direction::Deflate => self.giver.deflate(memory, start, length),
            }
        }
        Ok(Some(done.saturating_add(bytes)))
    }

    /// Counts what of a chain is no list of pages, or beyond what one may have.
    fn end(&self, chain: &Chain) {
        let (counters, length) = (self.giver.counters(), chain.readable().len());
        if !length.is_multiple_of(NUMBER) || length == 0 || !chain.writable().is_empty() {
            counters.broken.one();
        }
        counters.refused.add((length / NUMBER).saturating_sub(MOST_PAGES).into());
    }
}

impl ServeQueue for PageQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        for _ in 0..BATCH {
            let (chain, done) = match self.current.take() {
                Some(current) => current,
                None => match queue.pop(memory)? {
                    Some(chain) => (chain, 0),
                    None => return Ok(Batch::Empty),
                },
            };
            match self.take(&chain, done, memory)? {
                Some(done) if done < chain.readable().len() => self.current = Some((chain, done)),
                Some(_) => {
                    self.end(&chain);
                    queue.push(memory, chain, 0)?;
                }
                None => queue.push(memory, chain, 0)?,
            }
        }
        Ok(Batch::Full)
    }
}
