//! `Connection`: one client of the control socket. It is served one request at a time, and never waited for.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::arrivals::{Arrivals, Bag};
use super::descriptors::{self, Received};
use super::lines::Lines;
use super::wire::RequestError;

/// How long a client may go without a request, or without reading its answer.
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// A request, and the descriptors that have come with it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) line: Result<Vec<u8>, RequestError>,
    pub(super) bag: Bag<OwnedFd>,
}

/// The client is gone, or of no more use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// One client. What it is about to send waits in the kernel until it has read the answer to its last request, so that
/// no more than one request with its descriptors and one answer are kept for it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: Lines,
    /// What has come with it.
    arrivals: Arrivals<OwnedFd>,
    /// What it has not read yet.
    answer: Vec<u8>,
    /// An operation is under way for it.
    busy: bool,
    /// Nothing more is read from it.
    deaf: bool,
    /// It has sent a request.
    known: bool,
    /// When it last came, sent a request, or had read an answer.
    since: Instant,
}

impl Connection {
    /// Serves `stream`, which does not block.
    pub(super) fn new(stream: UnixStream, now: Instant) -> Self {
        let (input, arrivals, answer) = (Lines::default(), Arrivals::default(), Vec::new());
        Self { stream, input, arrivals, answer, busy: false, deaf: false, known: false, since: now }
    }

    /// What to wait for. A hang-up is reported without being asked for.
    pub(super) fn interest(&mut self) -> PollFlags {
        if !self.answer.is_empty() {
            PollFlags::POLLOUT
        } else if self.busy || self.deaf || self.input.has_line() {
            PollFlags::empty()
        } else {
            PollFlags::POLLIN
        }
    }

    /// When it has been idle for too long; never while an operation is under way for it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.busy).then(|| self.since + IDLE)
    }

    /// Which connection has to make room for another: the least of all.
    pub(super) fn worth(&self) -> (bool, bool, Instant) {
        (self.busy, self.known, self.since)
    }

    /// Does what [`interest`](Self::interest) has waited for.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn on_ready(&mut self, ready: PollFlags, now: Instant) -> Result<(), Gone> {
        if !self.answer.is_empty() {
            return self.write(now);
        }
        if ready.contains(PollFlags::POLLIN) && self.interest().contains(PollFlags::POLLIN) {
            return self.read();
        }
        // A client that has hung up on an operation is not answered.
        if ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) { Err(Gone) } else { Ok(()) }
    }

    /// Whether [`take_request`](Self::take_request) has something.
    pub(super) fn has_request(&mut self) -> bool {
        !self.busy && self.answer.is_empty() && self.input.has_line()
    }

    /// The next request, unless the last one is not answered yet. Its answer is owed from then on.
    pub(super) fn take_request(&mut self, now: Instant) -> Option<Request> {
        if !self.has_request() {
            return None;
        }
        let line = self.input.take_line()?;
        let bag = self.arrivals.take();
        self.busy = true;
        self.known = true;
        self.since = now;
        if line.is_err() {
            // Where the next request begins is not known.
            self.deaf = true;
            (self.input, self.arrivals) = (Lines::default(), Arrivals::default());
        }
        Some(Request { line, bag })
    }

    /// Answers the request that was taken.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn answer(&mut self, line: String, now: Instant) -> Result<(), Gone> {
        self.busy = false;
        self.answer = line.into_bytes();
        self.write(now)
    }

    /// Whether there is nothing left to be done for it.
    pub(super) fn is_done(&mut self) -> bool {
        self.deaf && !self.busy && self.answer.is_empty() && !self.input.has_line()
    }

    /// Takes leave: tells why, if that can be said without waiting and without cutting an answer short.
    pub(super) fn dismiss(mut self, line: &str) {
        if self.answer.is_empty() {
            // It may be gone, or not read.
            let _ = self.stream.write(line.as_bytes());
        }
    }

    fn read(&mut self) -> Result<(), Gone> {
        let mut chunk = [0; CHUNK];
        let room = self.input.room().min(CHUNK);
        match descriptors::receive(&self.stream, &mut chunk[..room]) {
            // It may still read.
            Ok(Received { count: 0, .. }) => self.deaf = true,
            Ok(Received { count, descriptors, cut }) => {
                self.arrivals.came(&chunk[..count], descriptors, cut);
                self.input.push(&chunk[..count]);
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => return Err(Gone),
        }
        Ok(())
    }

    fn write(&mut self, now: Instant) -> Result<(), Gone> {
        match self.stream.write(&self.answer) {
            Ok(count) if count == self.answer.len() => {
                self.answer = Vec::new();
                self.since = now;
            }
            Ok(count) => {
                self.answer.drain(..count);
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => return Err(Gone),
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Whether there is nothing to be read or written now, but may be later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::control::arrivals::{Fault, MOST_DESCRIPTORS};
    use crate::control::wire::MAX_REQUEST;

    fn pair() -> (Connection, UnixStream) {
        let (ours, client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours, Instant::now()), client)
    }

    fn receive(connection: &mut Connection) -> Result<(), Gone> {
        connection.on_ready(PollFlags::POLLIN, Instant::now())
    }

    fn take(connection: &mut Connection) -> Option<Result<Vec<u8>, RequestError>> {
        connection.take_request(Instant::now()).map(|request| request.line)
    }

    /// A descriptor to be sent, and what is at its end when nobody has it any more.
    fn witness() -> (OwnedFd, UnixStream) {
        let (sent, told) = UnixStream::pair().unwrap();
        (sent.into(), told)
    }

    fn is_closed(mut told: &UnixStream) -> bool {
        told.set_nonblocking(true).unwrap();
        matches!(told.read(&mut [0]), Ok(0))
    }

    fn answer(connection: &mut Connection, line: &str) -> Result<(), Gone> {
        connection.answer(line.into(), Instant::now())
    }

    #[test]
    fn requests_are_taken_one_at_a_time_in_their_order() {
        let (mut connection, mut client) = pair();
        client.write_all(b"one\ntwo\nthr").unwrap();
        receive(&mut connection).unwrap();
        assert_eq!(take(&mut connection), Some(Ok(b"one".to_vec())));
        assert_eq!(take(&mut connection), None);
        answer(&mut connection, "1\n").unwrap();
        assert_eq!(take(&mut connection), Some(Ok(b"two".to_vec())));
        answer(&mut connection, "2\n").unwrap();
        assert_eq!(take(&mut connection), None);
        client.write_all(b"ee\n").unwrap();
        receive(&mut connection).unwrap();
        assert_eq!(take(&mut connection), Some(Ok(b"three".to_vec())));
        let mut said = [0; 4];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"1\n2\n");
    }

    #[test]
    fn a_client_that_has_sent_all_it_has_is_still_answered() {
        let (mut connection, mut client) = pair();
        client.write_all(b"one\nhalf").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        receive(&mut connection).unwrap();
        assert!(!connection.is_done());
        assert_eq!(take(&mut connection), Some(Ok(b"one".to_vec())));
        assert!(!connection.is_done());
        answer(&mut connection, "1\n").unwrap();
        assert!(!connection.is_done());
        receive(&mut connection).unwrap();
        assert!(connection.is_done());
        drop(connection);
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said, "1\n");
    }

    #[test]
    fn fault_c10_a_request_that_does_not_end_is_answered_and_is_the_last() {
        let (mut connection, mut client) = pair();
        let flood = std::thread::spawn(move || {
            // Fails when the connection is dropped.
            while client.write_all(&[b'x'; 4096]).is_ok() {}
            client
        });
        let request = loop {
            receive(&mut connection).unwrap();
            if let Some(request) = take(&mut connection) {
                break request;
            }
        };
        assert_eq!(request, Err(RequestError::TooLong));
        answer(&mut connection, "no\n").unwrap();
        assert!(connection.is_done() && connection.interest().is_empty());
        drop(connection);
        let mut client = flood.join().unwrap();
        let mut said = [0; 3];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"no\n");
    }

    #[test]
    fn fault_c11_for_a_client_that_does_not_read_one_answer_is_kept_and_nothing_read() {
        let (mut connection, mut client) = pair();
        client.write_all(b"one\ntwo\n").unwrap();
        receive(&mut connection).unwrap();
        take(&mut connection).unwrap().unwrap();
        let long = "x".repeat(4 << 20) + "\n";
        answer(&mut connection, &long).unwrap();
        assert_eq!(connection.interest(), PollFlags::POLLOUT);
        assert_eq!(take(&mut connection), None);
        let reader = std::thread::spawn(move || {
            let mut said = vec![0; long.len()];
            client.read_exact(&mut said).map(|()| client)
        });
        while connection.interest() == PollFlags::POLLOUT {
            connection.on_ready(PollFlags::POLLOUT, Instant::now()).unwrap();
        }
        reader.join().unwrap().unwrap();
        assert_eq!(take(&mut connection), Some(Ok(b"two".to_vec())));
    }

    #[test]
    fn fault_c11_a_client_that_vanishes_is_gone_wherever_it_is_noticed() {
        let (mut connection, client) = pair();
        (&client).write_all(b"one\n").unwrap();
        receive(&mut connection).unwrap();
        take(&mut connection).unwrap().unwrap();
        drop(client);
        assert_eq!(connection.on_ready(PollFlags::POLLHUP, Instant::now()), Err(Gone));
        assert_eq!(answer(&mut connection, "1\n"), Err(Gone));
    }

    #[test]
    fn fault_c11_only_a_complete_request_and_a_read_answer_keep_a_client_from_being_idle() {
        let (mut connection, mut client) = pair();
        let start = connection.since;
        client.write_all(&[b'x'; 10]).unwrap();
        connection.on_ready(PollFlags::POLLIN, start + IDLE / 2).unwrap();
        assert_eq!(connection.deadline(), Some(start + IDLE));
        client.write_all(b"\n").unwrap();
        connection.on_ready(PollFlags::POLLIN, start + IDLE / 2).unwrap();
        connection.take_request(start + IDLE / 2).unwrap().line.unwrap();
        assert_eq!(connection.deadline(), None);
        connection.answer("1\n".into(), start + IDLE).unwrap();
        assert_eq!(connection.deadline(), Some(start + IDLE * 2));
    }

    #[test]
    fn fault_c11_a_client_that_has_asked_nothing_is_worth_the_least_and_the_oldest_less_than_others() {
        let now = Instant::now();
        let [mut first, mut second, mut known, mut busy] = std::array::from_fn(|_| pair().0);
        first.since = now;
        second.since = now + IDLE;
        (known.known, known.since) = (true, now - IDLE);
        (busy.known, busy.busy, busy.since) = (true, true, now - IDLE * 2);
        let ranks = [first.worth(), second.worth(), known.worth(), busy.worth()];
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn descriptors_are_taken_with_the_request_that_they_came_with() {
        let (mut connection, client) = pair();
        let (sent, told) = witness();
        (&client).write_all(b"one\ntw").unwrap();
        descriptors::send(&client, b"o\n", &[sent]).unwrap();
        receive(&mut connection).unwrap();
        let request = connection.take_request(Instant::now()).unwrap();
        assert!(request.line == Ok(b"one".to_vec()) && request.bag.descriptors.is_empty());
        answer(&mut connection, "1\n").unwrap();
        let request = connection.take_request(Instant::now()).unwrap();
        assert_eq!((request.line, request.bag.descriptors.len()), (Ok(b"two".to_vec()), 1));
        assert!(!is_closed(&told));
        drop(request.bag);
        assert!(is_closed(&told));
    }

    #[test]
    fn fault_c11_descriptors_of_a_client_that_vanishes_in_a_request_are_closed() {
        let (mut connection, client) = pair();
        let (sent, told) = witness();
        descriptors::send(&client, b"half", &[sent]).unwrap();
        receive(&mut connection).unwrap();
        drop(client);
        receive(&mut connection).unwrap();
        assert!(connection.is_done() && !is_closed(&told));
        drop(connection);
        assert!(is_closed(&told));
    }

    #[test]
    fn fault_c10_of_a_flood_of_descriptors_no_more_than_those_of_one_request_are_kept() {
        let (mut connection, client) = pair();
        let mut told = Vec::new();
        for _ in 0..3 * MOST_DESCRIPTORS {
            let (sent, other) = witness();
            descriptors::send(&client, b"x", &[sent]).unwrap();
            receive(&mut connection).unwrap();
            told.push(other);
        }
        assert_eq!(told.iter().filter(|told| !is_closed(told)).count(), MOST_DESCRIPTORS);
        (&client).write_all(b"\n").unwrap();
        receive(&mut connection).unwrap();
        let request = connection.take_request(Instant::now()).unwrap();
        assert_eq!(request.bag.fault, Some(Fault::TooMany));
        drop(request);
        assert!(told.iter().all(is_closed));
    }

    #[test]
    fn fault_c10_a_request_that_is_too_long_takes_its_descriptors_along() {
        let (mut connection, client) = pair();
        let (sent, told) = witness();
        descriptors::send(&client, b"x", &[sent]).unwrap();
        let flood =
            std::thread::spawn(move || (&client).write_all(&vec![b'x'; MAX_REQUEST + 1]).map(|()| client));
        let request = loop {
            receive(&mut connection).unwrap();
            if let Some(request) = connection.take_request(Instant::now()) {
                break request;
            }
        };
        assert_eq!(request.line, Err(RequestError::TooLong));
        drop(request);
        assert!(is_closed(&told));
        drop(connection);
        // It may have been cut off in the midst of it.
        let _ = flood.join().unwrap();
    }

    #[test]
    fn the_longest_request_is_taken() {
        let (mut connection, mut client) = pair();
        let line = vec![b'x'; MAX_REQUEST];
        let sender = std::thread::spawn({
            let line = [&line[..], b"\n"].concat();
            move || client.write_all(&line).map(|()| client)
        });
        let request = loop {
            receive(&mut connection).unwrap();
            if let Some(request) = take(&mut connection) {
                break request;
            }
        };
        assert_eq!(request, Ok(line));
        sender.join().unwrap().unwrap();
    }
}
