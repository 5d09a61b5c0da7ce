//! Messages: what this program says to the person who runs it, on standard error.
//!
//! They go through a bounded buffer and a thread, because the one who says something may be a vCPU's thread, and standard error may be a
//! pipe that nobody reads. Its thread is started by the first message.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use crate::console;
use crate::sink::MESSAGES;
use crate::sink::Sink;

/// `None`: the host has no descriptor or thread for it; messages are then written in place.
static SINK: OnceLock<Option<Sink>> = OnceLock::new();

fn sink() -> Option<&'static Sink> {
    let start = || Sink::start(&MESSAGES, Some(io::stderr().as_fd().try_clone_to_owned().ok()?)).ok();
    SINK.get_or_init(start).as_ref()
}

/// Starts the thread now: whoever starts it gives it its host CPUs, and a vCPU has none to give.
pub(crate) fn start() {
    sink();
}

/// Says `text`, which ends with a newline; if nobody listens, to nobody.
pub fn tell(text: fmt::Arguments<'_>) {
    write(text.to_string().as_bytes());
}

/// Waits until everything is said, but not for ever.
pub fn flush() {
    if let Some(sink) = SINK.get().and_then(Option::as_ref) {
        sink.flush();
    }
}

/// Writes whole lines, ended as the mode of the terminal wants them.
pub(crate) fn write(lines: &[u8]) {
    let raw = console::is_raw() && io::stderr().is_terminal();
    let text = if raw { with_carriage_returns(lines) } else { lines.to_vec() };
    // A sink takes everything; standard error that is gone needs nothing.
    let _ = match sink() {
        Some(sink) => sink.pen().write_all(&text),
        None => io::stderr().write_all(&text),
    };
}

fn with_carriage_returns(lines: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.len() + 8);
    for &byte in lines {
        if byte == b'\n' {
            text.push(b'\r');
        }
        text.push(byte);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_on_a_raw_terminal_start_at_the_left() {
        assert_eq!(with_carriage_returns(b"one\ntwo\n"), b"one\r\ntwo\r\n");
    }
}
