//! The event loop of the main thread: signals, the keys of the user, the guest's input, and the end of the machine.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use vmm_core::{VmEvent, VmEvents};
use vmm_devices::legacy::Serial;

use crate::console::Console;
use crate::signals::{Asked, Signals, at_least};

/// The keys with which a user ends the machine.
const CTRL_A_X: &str = "Ctrl-A X";

/// Why the loop has ended.
pub(crate) struct Ended {
    /// The reason of the machine's end.
    pub(crate) event: VmEvent,
    /// The signal that asked for it, if one did.
    pub(crate) signal: Option<Signal>,
}

/// What to look at after one wait.
struct Ready {
    ended: bool,
    signal: bool,
    fifo_empty: bool,
    input: bool,
    client: bool,
}

/// Serves everything until the machine has a reason to end.
pub(crate) fn run(events: &VmEvents, signals: &Signals, console: &mut Console, serial: &Serial) -> Ended {
    let mut stopped_by = None;
    // What waited for the guest of an earlier life.
    console.on_fifo_empty(serial);
    loop {
        console.look_for_terminal();
        let ready = match wait(events, signals, console) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                events.send(VmEvent::Internal(format!("the event loop cannot wait: {errno}")));
                Ready { ended: true, signal: false, fifo_empty: false, input: false, client: false }
            }
        };
        if ready.ended
            && let Some(event) = events.get()
        {
            return Ended { event: event.clone(), signal: stopped_by };
        }
        if ready.signal {
            stopped_by = serve_signals(events, signals, console);
        }
        if ready.fifo_empty {
            console.on_fifo_empty(serial);
        }
        if ready.input && console.receive(Some(serial)) {
            events.send(VmEvent::UserStop(CTRL_A_X));
        }
        if ready.client {
            console.accept();
        }
    }
}

/// Waits for `time` between two lives of a machine; `Some`: it has been asked not to live again.
pub(crate) fn pause(signals: &Signals, console: &mut Console, time: Duration) -> Option<Ended> {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        console.look_for_terminal();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(console.input());
        // A failure leaves nothing ready; the time passes all the same.
        let _ = poll(&mut fds, at_least(left));
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let (signal, input) = (ready(0), ready(1));
        match signal.then(|| signals.next()).flatten() {
            Some(Asked::Stop(signal)) => {
                return Some(Ended { event: VmEvent::UserStop(signal.as_str()), signal: Some(signal) });
            }
            Some(Asked::Continued) => console.continued(),
            None => {}
        }
        if input && console.receive(None) {
            return Some(Ended { event: VmEvent::UserStop(CTRL_A_X), signal: None });
        }
    }
}

/// Takes the signals that have arrived; returns the one that has stopped the machine, if one has.
fn serve_signals(events: &VmEvents, signals: &Signals, console: &mut Console) -> Option<Signal> {
    while let Some(asked) = signals.next() {
        match asked {
            Asked::Continued => console.continued(),
            Asked::Stop(signal) => {
                // A second signal is left for the one who watches over the stop.
                return events.send(VmEvent::UserStop(signal.as_str())).then_some(signal);
            }
        }
    }
    None
}

/// Sleeps until something is ready.
fn wait(events: &VmEvents, signals: &Signals, console: &Console) -> Result<Ready, Errno> {
    let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds = vec![readable(events.as_fd()), readable(signals.as_fd()), readable(console.drained())];
    let input = console.input().map(|fd| {
        fds.push(fd);
        fds.len() - 1
    });
    let client = console.listener().map(|fd| {
        fds.push(readable(fd));
        fds.len() - 1
    });
    poll(&mut fds, console.patience())?;
    // Errors and hang-ups count as ready: the read that follows tells which it is.
    let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
    Ok(Ready {
        ended: ready(0),
        signal: ready(1),
        fifo_empty: ready(2),
        input: input.is_some_and(ready),
        client: client.is_some_and(ready),
    })
}
