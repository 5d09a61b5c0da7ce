//! What is done with the chains of the queue (virtio 1.3, section 5.15.2).

use std::sync::Arc;

use vmm_memory::GuestMemory;

use super::desk::{Desk, Ticket};
use super::region::{Region, Verdict};
use super::request::{ANSWER_LENGTH, Answer, REQUEST, Request};
use crate::virtio::queue::{Chain, Queue, QueueError};
use crate::virtio::serve::{Batch, ServeQueue};

/// Requests of one batch.
const BATCH: usize = 16;

/// The request queue. One request is under way at a time.
pub(super) struct RequestQueue {
    region: Arc<Region>,
    desk: Arc<Desk>,
    /// A request whose change waits or is being made.
    waiting: Option<(Chain, Ticket)>,
}

impl RequestQueue {
    pub(super) fn new(region: Arc<Region>, desk: Arc<Desk>) -> Self {
        Self { region, desk, waiting: None }
    }

    /// Gives a request back with its answer. If the change was that its own buffer is there no more, that is an error of the driver.
    fn respond(
        &self,
        queue: &mut Queue,
        memory: &GuestMemory,
        chain: Chain,
        answer: Answer,
    ) -> Result<(), QueueError> {
        self.region.count(answer);
        chain.writable().write(memory, &answer.bytes())?;
        queue.push(memory, chain, ANSWER_LENGTH)
    }

    /// What is to be done about a request. `None`: there is no room for an answer.
    fn consider(&self, chain: &Chain, memory: &GuestMemory) -> Result<Option<Verdict>, QueueError> {
        if chain.writable().len() < ANSWER_LENGTH {
            return Ok(None);
        }
        if (chain.readable().len() as usize) < REQUEST {
            return Ok(Some(Verdict::Answer(Answer::Error)));
        }
        let mut bytes = [0; REQUEST];
        chain.readable().read(memory, &mut bytes)?;
        Ok(Some(self.region.consider(Request::read(&bytes))))
    }
}

impl ServeQueue for RequestQueue {
    fn serve(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Batch, QueueError> {
        if let Some((chain, ticket)) = self.waiting.take() {
            let Some(answer) = self.desk.answer(ticket) else {
                self.waiting = Some((chain, ticket));
                return Ok(Batch::Waiting);
            };
            self.respond(queue, memory, chain, answer)?;
        }
        for _ in 0..BATCH {
            let Some(chain) = queue.pop(memory)? else { return Ok(Batch::Empty) };
            match self.consider(&chain, memory)? {
                Some(Verdict::Answer(answer)) => self.respond(queue, memory, chain, answer)?,
                Some(Verdict::Change(change)) => {
                    self.waiting = Some((chain, self.desk.ask(change)));
                    return Ok(Batch::Waiting);
                }
                None => {
                    self.region.count(Answer::Error);
                    queue.push(memory, chain, 0)?;
                }
            }
        }
        Ok(Batch::Full)
    }

    fn untouched(&self) -> u16 {
        let waits = |(_, ticket): &(Chain, Ticket)| self.desk.waits(*ticket);
        u16::from(self.waiting.as_ref().is_some_and(waits))
    }
}

impl Drop for RequestQueue {
    /// Whoever goes on with the queue asks again.
    fn drop(&mut self) {
        if let Some((_, ticket)) = self.waiting.take() {
            self.desk.withdraw(ticket);
        }
    }
}
