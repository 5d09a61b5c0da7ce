//! `Server`: the thread of the control socket. It waits for clients and for nothing else.
//!
//! Operations that wait for a vCPU have threads of their own, so that a status is answered meanwhile. Whatever clients do,
//! a new one gets in: the least useful of the others makes room for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt};
use vmm_core::thread::spawn;

use super::calls::{CONTROL, CONTROL_WAIT};
use super::connection::{Connection, Request};
use super::operations::{Operation, Operations, Outcome};
use super::roles::Given;
use super::wire::{self, Answer, ErrorBody, ErrorCode};
use crate::listener::Listener;
use crate::signals::at_least;

/// Most connections at a time.
pub(super) const MOST_CONNECTIONS: usize = 16;

/// Most operations that wait for a vCPU at a time. More than connections: those may leave before their operation ends.
pub(super) const MOST_WAITING: usize = 32;

/// How long the listener is left alone when the host has no descriptor for a client: nothing tells when it has one again.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The running thread. Dropped, every operation that has been carried out is answered, and the socket is gone.
#[derive(Debug)]
pub(super) struct Server {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the clients of `listener`.
    ///
    /// # Errors
    /// The host has no descriptor or thread for it.
    pub(super) fn start(listener: Listener, operations: Operations) -> io::Result<Self> {
        let operations = Arc::new(operations);
        let inbox = Arc::new(Inbox {
            mail: Mutex::default(),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        });
        let mut clients = Clients {
            reserve: Some(inbox.wake.as_fd().try_clone_to_owned()?),
            listener,
            operations: Arc::clone(&operations),
            inbox: Arc::clone(&inbox),
            all: Vec::new(),
            next_id: 0,
            waiting: Vec::new(),
            deaf_until: None,
        };
        let serve = move || {
            if catch_unwind(AssertUnwindSafe(|| clients.serve())).is_err() {
                operations.fail("the thread of the control socket panicked");
            }
        };
        let thread = spawn(&CONTROL, CONTROL.name, serve)?;
        Ok(Self { inbox, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inbox.send(|mail| mail.ends = true);
        if let Some(thread) = self.thread.take() {
            // Its panics are caught and reported.
            let _ = thread.join();
        }
    }
}

/// What other threads have for the server.
#[derive(Debug)]
struct Inbox {
    mail: Mutex<Mail>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Mail {
    /// Operations that have ended, by the client that has asked.
    answers: Vec<(u64, Answer<Outcome>)>,
    ends: bool,
}

impl Inbox {
    fn send(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        // Fails when the counter is full: then the server is awake.
        let _ = self.wake.write(1);
    }

    fn take(&self) -> Mail {
        // Before the mail: what comes later wakes again.
        let _ = self.wake.read();
        std::mem::take(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A connection with the number that nobody else gets.
struct Client {
    id: u64,
    connection: Connection,
}

/// All clients, and the thread's state.
struct Clients {
    listener: Listener,
    operations: Arc<Operations>,
    inbox: Arc<Inbox>,
    all: Vec<Client>,
    next_id: u64,
    /// The threads of operations that wait for a vCPU.
    waiting: Vec<JoinHandle<()>>,
    /// A descriptor to give up for a client when the process has no other left.
    reserve: Option<OwnedFd>,
    /// Until when no client is accepted.
    deaf_until: Option<Instant>,
}

impl Clients {
    fn serve(&mut self) {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break,
                Err(errno) => {
                    self.operations.fail(&format!("the control socket cannot be waited for: {errno}"));
                    break;
                }
            }
        }
        // The machine is gone, and so is the reason to wait of each.
        for thread in self.waiting.drain(..) {
            let _ = thread.join();
        }
        let mail = self.inbox.take();
        self.deliver(mail.answers, Instant::now());
    }

    /// Waits once and serves what is ready: each client for one request. `false`: the end.
    fn turn(&mut self) -> Result<bool, Errno> {
        let (mail, knock) = match self.wait() {
            Err(Errno::EINTR) => return Ok(true),
            ready => ready?,
        };
        let now = Instant::now();
        if mail {
            let mail = self.inbox.take();
            self.deliver(mail.answers, now);
            if mail.ends {
                return Ok(false);
            }
        }
        self.serve_each(now);
        self.dismiss_idle(now);
        // Last: who has sent a request already is not the one to make room.
        if knock {
            self.accept(now);
        } else {
            self.renew_reserve();
        }
        Ok(true)
    }

    /// Sleeps until something is ready, reads from clients and writes to them as far as they are; returns whether there is
    /// mail, and whether a client knocks.
    fn wait(&mut self) -> Result<(bool, bool), Errno> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        let has_request = self.all.iter_mut().any(|client| client.connection.has_request());
        let deadlines = self.all.iter().filter_map(|client| client.connection.deadline());
        let deadline = deadlines.chain(self.deaf_until).min();
        let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(now)) {
            _ if has_request => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(left) => at_least(left),
        };
        let interests: Vec<_> = self.all.iter_mut().map(|client| client.connection.interest()).collect();
        let listens = if self.deaf_until.is_none() { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.inbox.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), listens),
        ];
        let clients = self.all.iter().zip(interests);
        fds.extend(clients.map(|(client, interest)| PollFd::new(client.connection.as_fd(), interest)));
        poll(&mut fds, timeout)?;
        let ready: Vec<_> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        let [mail, knock, clients @ ..] = &ready[..] else { return Ok((false, false)) };
        let (mail, knock) = (!mail.is_empty(), !knock.is_empty());
        let mut flags = clients.iter();
        self.all.retain_mut(|client| match flags.next() {
            Some(ready) if !ready.is_empty() => client.connection.on_ready(*ready, now).is_ok(),
            _ => true,
        });
        Ok((mail, knock))
    }

    /// Hands ended operations to those who wait for them, as far as they are still there.
    fn deliver(&mut self, answers: Vec<(u64, Answer<Outcome>)>, now: Instant) {
        for (id, answer) in answers {
            self.answer(id, &answer, now);
        }
        self.waiting.retain(|thread| !thread.is_finished());
    }

    fn answer(&mut self, id: u64, answer: &Answer<Outcome>, now: Instant) {
        let Some(at) = self.all.iter().position(|client| client.id == id) else { return };
        let gone = self
            .all
            .get_mut(at)
            .is_some_and(|client| client.connection.answer(wire::line(answer), now).is_err());
        if gone {
            self.all.remove(at);
        }
    }

    /// Takes a request of each client and carries it out, or begins to.
    fn serve_each(&mut self, now: Instant) {
        let taken: Vec<_> = self
            .all
            .iter_mut()
            .filter_map(|client| Some((client.id, client.connection.take_request(now)?)))
            .collect();
        for (id, request) in taken {
            if let Some(answer) = self.execute(id, request) {
                self.answer(id, &answer, now);
            }
        }
        self.all.retain_mut(|client| !client.connection.is_done());
    }

    /// Carries out a request of the client `id`; `None`: a thread does, and its answer comes as mail.
    /// Of what has come with it nothing is left when it is answered, but for what a device has.
    fn execute(&mut self, id: u64, Request { line, bag }: Request) -> Option<Answer<Outcome>> {
        let operation = match line.and_then(|line| wire::parse(&line)) {
            Err(error) => return Some(Answer::Error(error.into())),
            Ok(operation) => operation,
        };
        match Given::of(operation.roles(), bag) {
            Err(error) => Some(Answer::Error(error.into())),
            Ok(given) if operation.waits() => {
                self.start_thread(id, operation, given).err().map(Answer::Error)
            }
            Ok(_) => Some(self.operations.execute(operation).into()),
        }
    }

    fn start_thread(&mut self, id: u64, operation: Operation, given: Given) -> Result<(), ErrorBody> {
        self.waiting.retain(|thread| !thread.is_finished());
        if self.waiting.len() >= MOST_WAITING {
            let message = format!("{MOST_WAITING} operations are under way; ask again when one has ended");
            return Err(ErrorBody::new(ErrorCode::Busy, message));
        }
        let (operations, inbox) = (Arc::clone(&self.operations), Arc::clone(&self.inbox));
        let execute =
            move || match catch_unwind(AssertUnwindSafe(|| operations.execute_with(operation, given))) {
                Ok(result) => inbox.send(|mail| mail.answers.push((id, result.into()))),
                Err(_) => operations.fail("an operation of the control socket panicked"),
            };
        let thread = spawn(&CONTROL_WAIT, CONTROL_WAIT.name, execute);
        let exhausted = |error| ErrorBody::new(ErrorCode::Exhausted, format!("no thread for it: {error}"));
        self.waiting.push(thread.map_err(exhausted)?);
        Ok(())
    }

    fn dismiss_idle(&mut self, now: Instant) {
        let is_idle = |client: &Client| client.connection.deadline().is_some_and(|deadline| deadline <= now);
        while let Some(at) = self.all.iter().position(is_idle) {
            self.dismiss(at, ErrorCode::Idle, "no request for too long");
        }
    }

    /// Lets the connection that is worth the least go, if there is one.
    fn make_room(&mut self) -> bool {
        let worth = |(_, client): &(usize, &Client)| client.connection.worth();
        let least = self.all.iter().enumerate().min_by_key(worth).map(|(at, _)| at);
        if let Some(at) = least {
            self.dismiss(at, ErrorCode::Evicted, "another client needed the place; connect again");
        }
        least.is_some()
    }

    fn dismiss(&mut self, at: usize, code: ErrorCode, message: &str) {
        let client = self.all.remove(at);
        client.connection.dismiss(&wire::line(&Answer::<()>::Error(ErrorBody::new(code, message))));
    }

    /// Takes one client in.
    fn accept(&mut self, now: Instant) {
        let stream = match self.listener.accept() {
            Ok(stream) => stream,
            Err(error) if is_passing(&error) => return,
            // It still knocks: the next turn tries again, with a descriptor more.
            Err(_) if self.make_room() || self.reserve.take().is_some() => return,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot take a client in");
                self.deaf_until = Some(now + BACK_OFF);
                return;
            }
        };
        if let Err(refusal) = owner_only(&stream) {
            Connection::new(stream, now).dismiss(&wire::line(&Answer::<()>::Error(refusal)));
            return;
        }
        if self.all.len() >= MOST_CONNECTIONS {
            self.make_room();
        }
        self.all.push(Client { id: self.next_id, connection: Connection::new(stream, now) });
        self.next_id += 1;
        self.renew_reserve();
    }

    /// Takes back the descriptor that was given up, once the client it was given up for is in.
    fn renew_reserve(&mut self) {
        if self.reserve.is_none() {
            self.reserve = self.inbox.wake.as_fd().try_clone_to_owned().ok();
        }
    }
}

/// Whether the client has changed its mind, or nothing has happened at all.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

/// The mode of the socket may have been changed, and does not count for root: the client itself is looked at.
fn owner_only(stream: &UnixStream) -> Result<(), ErrorBody> {
    let peer = getsockopt(stream, sockopt::PeerCredentials).map(|credentials| credentials.uid());
    let message = match peer {
        Ok(uid) if is_owner(uid, rustix::process::geteuid().as_raw()) => return Ok(()),
        Ok(uid) => format!("user {uid} is neither root nor the one who runs this machine"),
        Err(errno) => format!("cannot tell who asks: {errno}"),
    };
    Err(ErrorBody::new(ErrorCode::Forbidden, message))
}

fn is_owner(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::path::PathBuf;

    use serde_json::Value;
    use vmm_core::{VmEvent, VmEvents};

    use super::*;
    use crate::config::MemorySize;
    use crate::control::Publication;
    use crate::control::current::Current;
    use crate::control::operations::{Facts, State};
    use crate::control::testing::FakeMachine;

    struct Bench {
        machine: Arc<FakeMachine>,
        published: Option<Publication>,
        asked: VmEvents,
        server: Option<Server>,
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (machine, current) = (Arc::new(FakeMachine::default()), Arc::new(Current::default()));
        let published = Some(current.publish(Arc::clone(&machine) as _));
        let asked = VmEvents::new().unwrap();
        let facts = Facts { vcpus: 2, memory: MemorySize::DEFAULT };
        let operations = Operations::new(facts, current, asked.clone());
        let server = Some(Server::start(Listener::bind(&path).unwrap(), operations).unwrap());
        Bench { machine, published, asked, server, path, _directory: directory }
    }

    impl Bench {
        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            // A watchdog, not a measure.
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        }

        /// Asks on a connection of its own.
        fn ask(&self, request: &str) -> Answer<Value> {
            let mut stream = self.connect();
            send(&mut stream, request);
            receive(&mut stream)
        }

        fn state(&self) -> State {
            match self.ask(r#"{"verb":"status"}"#) {
                Answer::Ok(status) => serde_json::from_value(status["state"].clone()).unwrap(),
                error => panic!("{error:?}"),
            }
        }
    }

    fn send(stream: &mut UnixStream, request: &str) {
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    fn receive(stream: &mut UnixStream) -> Answer<Value> {
        let mut line = String::new();
        BufReader::with_capacity(1, stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn code(answer: Answer<Value>) -> ErrorCode {
        match answer {
            Answer::Error(error) => error.code,
            Answer::Ok(value) => panic!("{value}"),
        }
    }

    #[test]
    fn a_status_is_answered_while_a_pause_waits_and_a_resume_ends_it() {
        let bench = bench();
        bench.machine.answers_no_pause();
        let mut pausing = bench.connect();
        send(&mut pausing, r#"{"verb":"pause","limit":"1m"}"#);
        while bench.state() != State::Pausing {}
        assert_eq!(bench.ask(r#"{"verb":"resume"}"#), Answer::Ok(serde_json::json!({ "state": "running" })));
        assert_eq!(code(receive(&mut pausing)), ErrorCode::Resumed);
    }

    #[test]
    fn fault_d5_the_end_of_the_machine_ends_a_pause_and_its_client_is_told() {
        let mut bench = bench();
        bench.machine.answers_no_pause();
        let mut pausing = bench.connect();
        send(&mut pausing, r#"{"verb":"pause","limit":"1m"}"#);
        while bench.state() != State::Pausing {}
        bench.ask(r#"{"verb":"reset"}"#);
        bench.published = None;
        bench.server = None;
        assert_eq!(code(receive(&mut pausing)), ErrorCode::Stopping);
        assert!(!bench.path.exists());
    }

    #[test]
    fn a_quit_is_answered_before_the_end() {
        let mut bench = bench();
        let mut stream = bench.connect();
        send(&mut stream, r#"{"verb":"quit"}"#);
        while bench.asked.get().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(bench.asked.get(), Some(&VmEvent::UserStop("control socket")));
        bench.server = None;
        assert_eq!(receive(&mut stream), Answer::Ok(serde_json::json!({})));
    }

    #[test]
    fn requests_of_one_connection_are_answered_in_their_order() {
        let bench = bench();
        let mut stream = bench.connect();
        let requests = [r#"{"verb":"pause"}"#, r#"{"verb":"status"}"#, "x", r#"{"verb":"resume"}"#];
        send(&mut stream, &requests.join("\n"));
        let answers: Vec<_> = (0..4).map(|_| receive(&mut stream)).collect();
        assert!(matches!(&answers[0], Answer::Ok(value) if value["state"] == "paused"), "{answers:?}");
        assert!(matches!(&answers[1], Answer::Ok(value) if value["vcpus"] == 2), "{answers:?}");
        assert!(matches!(&answers[2], Answer::Error(error) if error.column == Some(1)), "{answers:?}");
        assert!(matches!(&answers[3], Answer::Ok(value) if value["state"] == "running"), "{answers:?}");
    }

    #[test]
    fn fault_c11_with_every_place_taken_by_silent_clients_a_new_one_is_served() {
        let bench = bench();
        let mut known = bench.connect();
        send(&mut known, r#"{"verb":"status"}"#);
        receive(&mut known);
        let mut silent: Vec<_> = (0..4 * MOST_CONNECTIONS).map(|_| bench.connect()).collect();
        silent.iter_mut().for_each(|stream| stream.write_all(b"{\"verb\"").unwrap_or(()));
        assert_eq!(bench.state(), State::Running);
        assert_eq!(code(receive(&mut silent[0])), ErrorCode::Evicted);
        send(&mut known, r#"{"verb":"status"}"#);
        assert!(matches!(receive(&mut known), Answer::Ok(_)));
    }

    #[test]
    fn fault_c11_with_as_many_pauses_as_may_wait_a_new_client_is_served() {
        let bench = bench();
        bench.machine.answers_no_pause();
        let mut pausing = Vec::new();
        // Some may have to make room before they are heard.
        while code(bench.ask(r#"{"verb":"pause","limit":"0s"}"#)) != ErrorCode::Busy {
            let mut stream = bench.connect();
            send(&mut stream, r#"{"verb":"pause","limit":"1m"}"#);
            pausing.push(stream);
            assert!(pausing.len() < 10 * MOST_WAITING);
        }
        // Each turn asks twice. A short pause whose client had to make room may still be waiting.
        assert!(2 * pausing.len() >= MOST_WAITING);
        assert_eq!(bench.state(), State::Pausing);
        bench.ask(r#"{"verb":"resume"}"#);
    }

    #[test]
    fn fault_c10_a_request_without_an_end_is_refused_and_others_are_served() {
        let bench = bench();
        let mut flood = bench.connect();
        let reader = flood.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            // Fails when the connection is closed.
            while flood.write_all(&[b'['; 4096]).is_ok() {}
        });
        assert_eq!(code(receive(&mut { reader })), ErrorCode::TooLong);
        writer.join().unwrap();
        assert_eq!(bench.state(), State::Running);
    }

    #[test]
    fn fault_c11_clients_that_vanish_are_forgotten() {
        let bench = bench();
        for _ in 0..4 * MOST_CONNECTIONS {
            let mut stream = bench.connect();
            send(&mut stream, r#"{"verb":"status"}"#);
        }
        assert_eq!(bench.state(), State::Running);
    }

    #[test]
    fn fault_c11_a_client_that_does_not_read_keeps_nobody_waiting() {
        let bench = bench();
        let mut flood = bench.connect();
        flood.set_nonblocking(true).unwrap();
        let requests = "{\"verb\":\"stats\"}\n".repeat(1000);
        // Until neither side takes any more.
        let mut full = 0;
        while full < 100 {
            match flood.write(requests.as_bytes()) {
                Ok(_) => full = 0,
                Err(_) => full += 1,
            }
            assert_eq!(bench.state(), State::Running);
        }
    }

    #[test]
    fn a_server_that_ends_hangs_up() {
        let mut bench = bench();
        let mut stream = bench.connect();
        assert_eq!(bench.state(), State::Running);
        bench.server = None;
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert!(UnixStream::connect(&bench.path).is_err());
    }

    #[test]
    fn only_the_owner_and_root_are_served() {
        assert!(is_owner(1000, 1000) && is_owner(0, 1000) && is_owner(0, 0));
        assert!(!is_owner(1001, 1000) && !is_owner(1000, 0));
        assert_eq!(owner_only(&UnixStream::pair().unwrap().0), Ok(()));
    }
}
