//! `Sink`: a bounded buffer in front of a descriptor that may block, and the thread that empties it.
//!
//! Everything that must not wait for a terminal, a pipe or a disk writes through one: the guest's serial port, the log,
//! messages to the user.
//!
//! The descriptor may be inherited (standard output): its flags are left alone. So the thread waits until it is
//! writable, and if a write blocks all the same, it blocks this thread and nothing else.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm_core::thread::{Call, Kind, spawn};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most bytes that wait; what comes on top is dropped and counted.
const CAPACITY: usize = 256 * 1024;

/// Most bytes of one write: a pipe that polls as writable takes this many without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// How long the thread lets bytes come together after a write, unless they make a whole chunk before. The first byte after
/// a pause goes out at once; a guest that writes byte after byte does not wake the thread for each of them.
const GATHERING: Duration = Duration::from_millis(4);

/// How long a flush waits for output that makes no progress.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the output goes at present.
#[derive(Clone, Debug)]
enum Target {
    /// To this descriptor.
    Open(Arc<OwnedFd>),
    /// It is kept until somebody comes to take it.
    Awaited,
    /// Nowhere any more: what comes is dropped.
    Broken,
    /// Nowhere, as was asked for.
    Nowhere,
}

/// More bytes than the buffer ever has: the thread does not sleep.
const NEVER: usize = usize::MAX;

#[derive(Debug)]
struct State {
    buffer: VecDeque<u8>,
    target: Target,
    /// The thread is writing a chunk that is no longer in the buffer.
    writing: bool,
    /// The thread sleeps until the buffer has this many bytes.
    wakes_at: usize,
    /// How many wait until everything is written.
    flushing: usize,
    closing: bool,
    /// Whether somebody else may come for what the one who takes it now leaves.
    awaits: bool,
    dropped: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something for the writer: bytes, a sink, or the end.
    work: Condvar,
    /// A chunk was dealt with.
    progress: Condvar,
}

impl Shared {
    fn new(target: Target, awaits: bool) -> Self {
        let state = State {
            buffer: VecDeque::new(),
            target,
            writing: false,
            wakes_at: NEVER,
            flushing: 0,
            closing: false,
            awaits,
            dropped: 0,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), progress: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writers' side: never blocks, never fails. Clones write to the same sink.
#[derive(Clone, Debug)]
pub(crate) struct Pen(Arc<Shared>);

impl Write for Pen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let room = match state.target {
            Target::Nowhere => return Ok(bytes.len()),
            Target::Broken => 0,
            Target::Open(_) | Target::Awaited => CAPACITY.saturating_sub(state.buffer.len()),
        };
        let taken = room.min(bytes.len());
        let before = state.buffer.len();
        state.buffer.extend(&bytes[..taken]);
        state.dropped += (bytes.len() - taken) as u64;
        let wakes = (before + 1..=before + taken).contains(&state.wakes_at);
        drop(state);
        if wakes {
            self.0.work.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a writer thread asks for.
const WRITING: &[Call] = &[Call::any(libc::SYS_poll)];

/// `console`: output of a console.
pub(crate) static CONSOLE: Kind = Kind { name: "console", tables: &[WRITING] };

/// `log`: the log in a file.
pub(crate) static LOG: Kind = Kind { name: "log", tables: &[WRITING] };

/// `messages`: standard error.
pub(crate) static MESSAGES: Kind = Kind { name: "messages", tables: &[WRITING] };

/// The buffer and its thread.
#[derive(Debug)]
pub(crate) struct Sink(Arc<Shared>);

impl Sink {
    /// Starts the writer thread, of `kind` and named after it. Without `fd` the output waits for [`connect`](Self::connect).
    pub(crate) fn start(kind: &'static Kind, fd: Option<OwnedFd>) -> io::Result<Self> {
        let awaits = fd.is_none();
        let target = fd.map_or(Target::Awaited, |fd| Target::Open(Arc::new(fd)));
        let shared = Arc::new(Shared::new(target, awaits));
        spawn(kind, kind.name, {
            let shared = Arc::clone(&shared);
            move || empty(&shared)
        })?;
        Ok(Self(shared))
    }

    /// A sink that takes everything and keeps nothing, without a thread.
    pub(crate) fn nowhere() -> Self {
        Self(Arc::new(Shared::new(Target::Nowhere, false)))
    }

    /// A handle for a device.
    pub(crate) fn pen(&self) -> Pen {
        Pen(Arc::clone(&self.0))
    }

    /// Sends the output to `fd` from now on, what waits first.
    pub(crate) fn connect(&self, fd: OwnedFd) {
        self.0.lock().target = Target::Open(Arc::new(fd));
        self.0.work.notify_one();
    }

    /// Keeps the output until the next [`connect`](Self::connect).
    pub(crate) fn disconnect(&self) {
        self.0.lock().target = Target::Awaited;
    }

    /// Waits until everything is written, but not longer than [`PATIENCE`] without progress; returns how many bytes
    /// were dropped so far, those that are still waiting included.
    pub(crate) fn flush(&self) -> u64 {
        let mut state = self.0.lock();
        state.flushing += 1;
        self.0.work.notify_one();
        while matches!(state.target, Target::Open(_)) && (state.writing || !state.buffer.is_empty()) {
            let (guard, waited) =
                self.0.progress.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if waited.timed_out() {
                break;
            }
        }
        state.flushing -= 1;
        state.dropped + state.buffer.len() as u64
    }
}

impl Drop for Sink {
    /// The thread ends once nothing is left; one that is blocked in a write is left behind.
    fn drop(&mut self) {
        self.0.lock().closing = true;
        self.0.work.notify_one();
    }
}

/// What became of a chunk.
enum Written {
    Whole,
    /// So many bytes could not be stored; the next chunk may fare better.
    Short(usize),
    /// The other end is gone.
    Broken(usize),
}

/// The writer thread.
fn empty(shared: &Shared) {
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        let Some(fd) = next_chunk(shared, &mut chunk) else { return };
        let written = write_chunk(&fd, &chunk);
        let mut state = shared.lock();
        state.writing = false;
        match written {
            Written::Whole => {}
            Written::Short(lost) => state.dropped += lost as u64,
            Written::Broken(lost) => {
                // A new target may have come meanwhile.
                let current = matches!(&state.target, Target::Open(open) if Arc::ptr_eq(open, &fd));
                if state.awaits {
                    // The next one gets what this one has left.
                    let unsent = &chunk[chunk.len() - lost..];
                    unsent.iter().rev().for_each(|&byte| state.buffer.push_front(byte));
                    if current {
                        state.target = Target::Awaited;
                    }
                } else if current {
                    state.dropped += (lost + state.buffer.len()) as u64;
                    state.buffer = VecDeque::new();
                    state.target = Target::Broken;
                }
            }
        }
        if state.flushing != 0 {
            shared.progress.notify_all();
        }
        gather(shared, state);
    }
}

/// Lets bytes come together, as long as nobody waits for them.
fn gather(shared: &Shared, mut state: MutexGuard<'_, State>) {
    state.wakes_at = CHUNK;
    let waits = |state: &mut State| state.buffer.len() < CHUNK && state.flushing == 0 && !state.closing;
    let woken = shared.work.wait_timeout_while(state, GATHERING, waits);
    woken.unwrap_or_else(PoisonError::into_inner).0.wakes_at = NEVER;
}

/// Sleeps until there is something to write and somewhere to write it to; moves it to `chunk`. `None`: the end.
fn next_chunk(shared: &Shared, chunk: &mut Vec<u8>) -> Option<Arc<OwnedFd>> {
    let mut state = shared.lock();
    loop {
        match &state.target {
            Target::Open(fd) if !state.buffer.is_empty() => {
                let fd = Arc::clone(fd);
                let length = state.buffer.len().min(CHUNK);
                chunk.clear();
                chunk.extend(state.buffer.drain(..length));
                state.writing = true;
                return Some(fd);
            }
            _ if state.closing => return None,
            _ => {
                state.wakes_at = 1;
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.wakes_at = NEVER;
            }
        }
    }
}

/// Writes `chunk`, waiting for a slow reader as long as it takes.
fn write_chunk(fd: &OwnedFd, mut chunk: &[u8]) -> Written {
    while !chunk.is_empty() {
        // An error of poll is one that write reports better.
        let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
        match nix::unistd::write(fd, chunk) {
            Ok(count) => chunk = &chunk[count..],
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // A full disk or a quota: the file may find room again.
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => return Written::Short(chunk.len()),
            Err(_) => return Written::Broken(chunk.len()),
        }
    }
    Written::Whole
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::time::Instant;

    use super::*;

    #[test]
    fn everything_arrives_in_order_and_flush_waits_for_it() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Sink::start(&CONSOLE, Some(writer.into())).unwrap();
        let mut pen = output.pen();
        let expected: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let received = std::thread::spawn(move || {
            let mut all = vec![0; 100_000];
            reader.read_exact(&mut all).unwrap();
            all
        });
        for part in expected.chunks(777) {
            pen.write_all(part).unwrap();
        }
        assert_eq!(output.flush(), 0);
        assert_eq!(received.join().unwrap(), expected);
    }

    #[test]
    fn bytes_that_follow_each_other_closely_share_writes() {
        const BYTES: usize = 100;
        // Each write is a datagram.
        let (reader, writer) = UnixDatagram::pair().unwrap();
        let output = Sink::start(&CONSOLE, Some(OwnedFd::from(writer))).unwrap();
        let start = Instant::now();
        // The first one waits for nothing.
        output.pen().write_all(b"x").unwrap();
        assert_eq!(reader.recv(&mut [0; CHUNK]).unwrap(), 1);
        let lengths = std::thread::spawn(move || {
            let mut lengths = Vec::new();
            while lengths.iter().sum::<usize>() < BYTES {
                lengths.push(reader.recv(&mut [0; CHUNK]).unwrap());
            }
            lengths
        });
        for _ in 0..BYTES {
            output.pen().write_all(b"x").unwrap();
            // Time enough to write it, if the thread were to.
            std::thread::sleep(Duration::from_micros(100));
        }
        let gatherings = start.elapsed().as_millis() / GATHERING.as_millis();
        assert_eq!(output.flush(), 0);
        let lengths = lengths.join().unwrap();
        // The last one is flushed.
        assert!(lengths.len() as u128 <= gatherings + 2, "{lengths:?}");
    }

    #[test]
    fn fault_b12_a_full_pipe_blocks_nobody_and_what_does_not_fit_is_counted() {
        let (_reader, writer) = io::pipe().unwrap();
        let output = Sink::start(&CONSOLE, Some(writer.into())).unwrap();
        let mut pen = output.pen();
        let total = 4 * CAPACITY;
        for _ in 0..total / 1024 {
            pen.write_all(&[b'x'; 1024]).unwrap();
        }
        let dropped = output.flush();
        assert!(
            dropped > (total - CAPACITY - 2 * 65536 - CHUNK) as u64 && dropped < total as u64,
            "{dropped}"
        );
    }

    #[test]
    fn fault_b12_a_closed_pipe_stops_the_sink_and_nothing_else() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = Sink::start(&CONSOLE, Some(writer.into())).unwrap();
        let mut pen = output.pen();
        pen.write_all(b"lost").unwrap();
        assert_eq!(output.flush(), 4);
        pen.write_all(b"lost too").unwrap();
        assert_eq!(output.flush(), 12);
    }

    #[test]
    fn fault_b12_a_full_disk_drops_and_counts() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Sink::start(&CONSOLE, Some(full.into())).unwrap();
        output.pen().write_all(b"twelve bytes").unwrap();
        assert_eq!(output.flush(), 12);
    }

    #[test]
    fn what_a_client_leaves_waits_for_the_next() {
        let output = Sink::start(&CONSOLE, None).unwrap();
        let (ours, client) = UnixStream::pair().unwrap();
        drop(client);
        output.connect(ours.into());
        output.pen().write_all(b"kept").unwrap();
        output.flush();
        let (ours, mut client) = UnixStream::pair().unwrap();
        output.connect(ours.into());
        let mut text = [0; 4];
        client.read_exact(&mut text).unwrap();
        assert_eq!((&text, output.flush()), (b"kept", 0));
    }

    #[test]
    fn a_sink_that_is_meant_to_lose_everything_counts_nothing() {
        let output = Sink::nowhere();
        output.pen().write_all(b"gone").unwrap();
        assert_eq!(output.flush(), 0);
    }

    #[test]
    fn output_waits_for_the_first_client_and_goes_on_with_the_next() {
        let output = Sink::start(&CONSOLE, None).unwrap();
        let mut pen = output.pen();
        pen.write_all(b"early").unwrap();
        let mut text = [0; 5];
        let (ours, mut client) = UnixStream::pair().unwrap();
        output.connect(ours.into());
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"early");
        output.disconnect();
        drop(client);
        pen.write_all(b"later").unwrap();
        let (ours, mut client) = UnixStream::pair().unwrap();
        output.connect(ours.into());
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"later");
    }
}
