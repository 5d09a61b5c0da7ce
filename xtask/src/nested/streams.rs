//! Streams: the sockets between this process and the ports of the nested host.
//!
//! The emulator loses an interrupt now and then: leaving a guest of the nested host changes the word that says one is due, without the lock
//! under which a device sets it. The interrupt stays requested and is taken with the next one; but if it was that of the timer, and
//! everything on that CPU waits for time, or is a guest that waits for another one behind it, there is none. So one comes from here, all the time
//! ([`nudge`]), and the first program of the nested host passes it on to every CPU.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ChildStderr;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// From one interrupt to the next.
const NUDGE: Duration = Duration::from_millis(100);

/// What the nested host does.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Its first program says a line.
    Said(String),
    /// The output of the command on one stream was passed on up to its end.
    Complete,
    /// What it wrote cannot be passed on.
    Lost(String),
    /// Its machine has ended, having said this.
    Gone(String),
}

/// A socket that QEMU connects to. It has a name but no file.
#[derive(Debug)]
pub struct Port {
    pub name: &'static str,
    pub address: String,
    listener: UnixListener,
}

impl Port {
    /// `run` tells the runs of one time apart.
    pub fn new(run: &str, name: &'static str) -> Result<Self> {
        let address = format!("vmm-nested-{run}-{name}");
        let listener = SocketAddr::from_abstract_name(&address)
            .and_then(|address| UnixListener::bind_addr(&address))
            .context("cannot listen")?;
        Ok(Self { name, address, listener })
    }

    /// The first connection of a process of this user; a name is open to everybody.
    fn accept(&self) -> io::Result<UnixStream> {
        let user = fs::metadata("/proc/self")?.uid();
        loop {
            let (stream, _) = self.listener.accept()?;
            if getsockopt(&stream, PeerCredentials)?.uid() == user {
                return Ok(stream);
            }
        }
    }
}

/// Sends what `input` has to `port`, up to its end, from a thread that may outlive the nested host.
pub fn send(port: Port, mut input: impl Read + Send + 'static) {
    thread::spawn(move || {
        let mut stream = port.accept()?;
        // A nested host that is gone needs no input.
        let _ = io::copy(&mut input, &mut stream);
        stream.shutdown(Shutdown::Write)?;
        // Closed before QEMU has read everything, it would drop the rest. It closes its side when it has.
        io::copy(&mut stream, &mut io::sink())
    });
}

/// Passes on to `output` what comes from `port`, up to `mark`.
pub fn receive(port: Port, mark: String, mut output: impl Write + Send + 'static, events: Sender<Event>) {
    thread::spawn(move || {
        let event = match port.accept().and_then(|stream| pass_on(stream, &mut output, mark.as_bytes())) {
            Ok(true) => Event::Complete,
            // The end of the machine is told by another thread.
            Ok(false) => return,
            Err(error) => Event::Lost(format!("{} of the command cannot be passed on: {error}", port.name)),
        };
        // Nobody listens when the run has ended.
        let _ = events.send(event);
    });
}

/// Tells the lines that come from `port`, and sends it something all the time.
pub fn listen(port: Port, events: Sender<Event>) {
    thread::spawn(move || {
        let Ok(stream) = port.accept() else { return };
        if let Ok(other) = stream.try_clone() {
            thread::spawn(move || nudge(other));
        }
        let lines = BufReader::new(stream).lines().map_while(io::Result::ok);
        // Nobody listens when the run has ended.
        lines.map(Event::Said).map_while(|event| events.send(event).ok()).for_each(drop);
    });
}

/// Has the nested host take interrupts, until it is gone.
fn nudge(mut port: impl Write) {
    while port.write_all(b"\n").is_ok() {
        thread::sleep(NUDGE);
    }
}

/// Tells the end of the machine, which is when nobody holds its standard error.
pub fn watch(mut stderr: ChildStderr, events: Sender<Event>) {
    thread::spawn(move || {
        let mut said = Vec::new();
        // What was read until an error is all there is.
        let _ = stderr.read_to_end(&mut said);
        events.send(Event::Gone(String::from_utf8_lossy(&said).trim().to_owned()))
    });
}

/// Copies up to the first `mark`, and tells whether it came before the end. Everything else is passed on at once.
fn pass_on(mut input: impl Read, output: &mut impl Write, mark: &[u8]) -> io::Result<bool> {
    let mut chunk = [0; 1 << 16];
    let mut held = Vec::new();
    loop {
        let count = match input.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The machine was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        held.extend(&chunk[..count]);
        let marked = held.ends_with(mark);
        // What may become the mark is held back while more can come.
        let kept = match count {
            0 => 0,
            _ => (1..=mark.len()).rev().find(|length| held.ends_with(&mark[..*length])).unwrap_or(0),
        };
        let passed = held.len() - if marked { mark.len() } else { kept };
        output.write_all(&held[..passed])?;
        output.flush()?;
        if marked || count == 0 {
            return Ok(marked);
        }
        held.drain(..passed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one piece a read.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn passed(pieces: &[&'static [u8]]) -> (Vec<u8>, bool) {
        let mut output = Vec::new();
        let marked = pass_on(Pieces(pieces.to_vec()), &mut output, b"MARK").unwrap();
        (output, marked)
    }

    #[test]
    fn everything_before_the_mark_is_passed_on_however_it_comes_apart() {
        assert_eq!(passed(&[b"a\0\xffMARK"]), (b"a\0\xff".to_vec(), true));
        assert_eq!(passed(&[b"aM", b"A", b"RK"]), (b"a".to_vec(), true));
        assert_eq!(passed(&[b"MAMA", b"MARMA", b"RK"]), (b"MAMAMAR".to_vec(), true));
    }

    #[test]
    fn without_a_mark_everything_is_passed_on_and_it_is_said() {
        assert_eq!(passed(&[b"aMA", b"R"]), (b"aMAR".to_vec(), false));
        assert_eq!(passed(&[]), (Vec::new(), false));
    }

    #[test]
    fn what_cannot_become_the_mark_is_passed_on_before_more_comes() {
        struct Checked(Vec<u8>);
        impl Write for Checked {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                if self.0 == b"ready\n" { Err(io::Error::other("seen")) } else { Ok(()) }
            }
        }
        let error =
            pass_on(Pieces(vec![b"ready\n", b"MARK"]), &mut Checked(Vec::new()), b"MARK").unwrap_err();
        assert_eq!(error.to_string(), "seen");
    }
}
