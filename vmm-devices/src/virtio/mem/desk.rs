//! `Desk`: where a change waits from the batch that has found it to the one that answers it.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::region::Change;
use super::request::Answer;
use crate::sync::lock;

/// What a change that was asked for is found again by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Default)]
struct State {
    last: u64,
    asked: Option<(Ticket, Change)>,
    done: Option<(Ticket, Answer)>,
}

/// The place of one change. Nothing is called under its lock.
pub(super) struct Desk {
    state: Mutex<State>,
    /// Signalled when a change was asked for.
    bell: Arc<EventFd>,
    /// Signalled when it has been tried: the doorbell of the queue.
    queue: Arc<EventFd>,
}

impl Desk {
    /// Of the queue that is woken by `queue`.
    pub(super) fn new(queue: Arc<EventFd>) -> io::Result<Self> {
        let bell = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        Ok(Self { state: Mutex::default(), bell, queue })
    }

    /// What wakes whoever makes changes.
    pub(super) fn bell(&self) -> Arc<EventFd> {
        Arc::clone(&self.bell)
    }

    /// Asks for a change, in the place of any that was asked for before.
    pub(super) fn ask(&self, change: Change) -> Ticket {
        let mut state = lock(&self.state);
        state.last = state.last.wrapping_add(1);
        let ticket = Ticket(state.last);
        (state.asked, state.done) = (Some((ticket, change)), None);
        drop(state);
        // It fails only when 2^64 - 2 rings wait already.
        let _ = self.bell.write(1);
        ticket
    }

    /// What has come of a change; `None`: nothing so far.
    pub(super) fn answer(&self, ticket: Ticket) -> Option<Answer> {
        let done = lock(&self.state).done;
        done.filter(|(of, _)| *of == ticket).map(|(_, answer)| answer)
    }

    /// Asks for a change no more. Whether it was not begun.
    pub(super) fn withdraw(&self, ticket: Ticket) -> bool {
        lock(&self.state).asked.take_if(|(of, _)| *of == ticket).is_some()
    }

    /// Whether a change was not begun.
    pub(super) fn waits(&self, ticket: Ticket) -> bool {
        lock(&self.state).asked.is_some_and(|(of, _)| of == ticket)
    }

    /// Has `make` make the change that is asked for, if one is.
    pub(super) fn serve(&self, make: impl FnOnce(Change) -> Answer) {
        let asked = lock(&self.state).asked.take();
        let Some((ticket, change)) = asked else { return };
        let answer = make(change);
        lock(&self.state).done = Some((ticket, answer));
        let _ = self.queue.write(1);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn desk() -> Desk {
        Desk::new(Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap())).unwrap()
    }

    #[test]
    fn a_change_is_made_once_and_its_answer_is_for_its_ticket_alone() {
        let desk = desk();
        let ticket = desk.ask(Change::UnplugAll);
        assert!(desk.waits(ticket) && desk.answer(ticket).is_none() && desk.bell.read().is_ok());
        desk.serve(|change| {
            assert_eq!(change, Change::UnplugAll);
            Answer::Ack
        });
        desk.serve(|_| panic!("twice"));
        assert!(!desk.waits(ticket) && desk.queue.read().is_ok());
        assert_eq!(desk.answer(ticket), Some(Answer::Ack));
        let next = desk.ask(Change::UnplugAll);
        assert_eq!((desk.answer(ticket), desk.answer(next)), (None, None));
    }

    #[test]
    fn what_is_withdrawn_is_not_made_and_what_was_begun_is_answered_to_nobody() {
        let desk = desk();
        let ticket = desk.ask(Change::UnplugAll);
        assert!(desk.withdraw(ticket) && !desk.withdraw(ticket));
        desk.serve(|_| panic!("it was withdrawn"));
        let old = desk.ask(Change::UnplugAll);
        let mut new = None;
        desk.serve(|_| {
            assert!(!desk.withdraw(old));
            new = Some(desk.ask(Change::UnplugAll));
            Answer::Ack
        });
        assert_eq!(desk.answer(new.unwrap()), None);
        assert!(desk.waits(new.unwrap()));
    }
}
