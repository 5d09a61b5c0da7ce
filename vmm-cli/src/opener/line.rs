//! `Line`: the monitor's side. One asks at a time; whoever gets no answer does not wait long, and nobody behind him waits at all.
//!
//! Lock order: the turn is the only lock here, and the last one that is taken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, shutdown};
use vmm_core::LogLimit;

use super::packets::{self, Enclosed};
use super::wire::{ANSWER, Answer, Request};
use crate::signals::at_least;

/// How long an answer is waited for. A connection to a Unix socket is made or refused at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// The opener, for those who ask it.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    turn: Mutex<Turn>,
    log: LogLimit,
}

#[derive(Debug, Default)]
struct Turn {
    /// The number of the last request.
    last: u32,
    /// It has no answer yet, and nobody waits for that any more.
    is_owed: bool,
    /// Nobody is at the other end.
    is_gone: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("the process that connects to sockets (vmm-opener) is gone")]
    Gone,
    #[error("the process that connects to sockets (vmm-opener) does not answer")]
    Late,
}

impl From<Silence> for io::Error {
    fn from(silence: Silence) -> Self {
        let kind = match silence {
            Silence::Gone => io::ErrorKind::NotConnected,
            Silence::Late => io::ErrorKind::TimedOut,
        };
        Self::new(kind, silence)
    }
}

/// What an answer is: a number, and perhaps a descriptor.
type Answered = (u32, Option<OwnedFd>);

impl Line {
    /// The opener is at the other end of `socket`.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, turn: Mutex::default(), log: LogLimit::default() }
    }

    /// Nobody is asked any more, whoever still has this.
    pub(super) fn end(&self) {
        // It fails only where the other end has gone.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Asks for something.
    ///
    /// # Errors
    /// The kernel's, as the opener has had it; or there is no opener any more, or no answer within two seconds, of which the log is told.
    pub(super) fn ask(&self, request: &Request, descriptor: Option<BorrowedFd<'_>>) -> io::Result<Answered> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.exchange(&mut turn, request, descriptor) {
            Ok(answered) => answered.map_err(io::Error::from),
            Err(silence) => {
                if let Some(left_out) = self.log.permit() {
                    tracing::error!(error = %silence, left_out, "a socket of the host cannot be connected to");
                }
                Err(silence.into())
            }
        }
    }

    fn exchange(
        &self,
        turn: &mut Turn,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Result<Answered, Errno>, Silence> {
        if turn.is_owed {
            // What was asked before comes first.
            self.answer(turn, Instant::now())?.map(drop).ok();
        }
        turn.last = turn.last.wrapping_add(1);
        match packets::send(&self.socket, &request.packet(turn.last), descriptor, SendFlags::DONTWAIT) {
            Ok(()) => {}
            // What cannot be sent is not the opener's fault.
            Err(errno @ (Errno::TOOMANYREFS | Errno::NOMEM | Errno::NOBUFS)) => return Ok(Err(errno)),
            Err(_) => {
                turn.is_gone = true;
                return Err(Silence::Gone);
            }
        }
        self.answer(turn, Instant::now() + PATIENCE)
    }

    /// The answer to the last request, which is waited for until `deadline`.
    fn answer(&self, turn: &mut Turn, deadline: Instant) -> Result<Result<Answered, Errno>, Silence> {
        if turn.is_gone {
            return Err(Silence::Gone);
        }
        turn.is_owed = true;
        loop {
            let mut buffer = [0; ANSWER + 1];
            match packets::receive(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Silence::Late);
                    }
                    // A signal, or an error that is met above.
                    let _ = poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], at_least(left));
                }
                Ok((length @ 1.., enclosed)) => {
                    let answer = buffer.get(..length).and_then(Answer::read);
                    // What is no answer to this request is nobody's.
                    if let Some(answer) = answer.filter(|answer| answer.turn == turn.last) {
                        turn.is_owed = false;
                        return Ok(match enclosed {
                            Enclosed::Nothing => answer.result.map(|number| (number, None)),
                            Enclosed::One(fd) => answer.result.map(|number| (number, Some(fd))),
                            // This process has no descriptor left.
                            Enclosed::Other => Err(Errno::MFILE),
                        });
                    }
                    if Instant::now() >= deadline {
                        return Err(Silence::Late);
                    }
                }
                Ok(_) | Err(_) => {
                    turn.is_gone = true;
                    return Err(Silence::Gone);
                }
            }
        }
    }
}
