//! The event loop of the main thread: signals, the keys of the user, the guest's input, the control socket's wish for an
//! end, and the end of the machine.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use vmm_core::{VmEvent, VmEvents};

use crate::console::{Console, Consoles, GuestPort};
use crate::control::Control;
use crate::machine::Machine;
use crate::signals::{Asked, Signals, at_least};

/// The keys with which a user ends the machine.
const CTRL_A_X: &str = "Ctrl-A X";

/// Why the loop has ended.
pub(crate) struct Ended {
    /// The reason of the machine's end.
    pub(crate) event: VmEvent,
    /// The signal that asked for it, if one did.
    pub(crate) asked: Option<Signal>,
    /// The signal that forced it, on a guest that had been asked to shut down and had not done so.
    pub(crate) forced: Option<Signal>,
}

/// How far a stop has come that a signal asks for.
#[derive(Default)]
struct Stop {
    asked: Option<Signal>,
    forced: Option<Signal>,
    /// Until when the guest may shut down, once its power button is pressed.
    deadline: Option<Instant>,
}

impl Stop {
    fn on_signal(&mut self, signal: Signal, events: &VmEvents, machine: &Machine, grace: Duration) {
        if self.deadline.is_some() {
            self.force(signal, signal.as_str(), events);
        } else if machine.power_button().press() {
            tracing::info!(signal = signal.as_str(), ?grace, "the power button is pressed");
            self.asked = Some(signal);
            self.deadline = Some(Instant::now() + grace);
        } else {
            // Also where the guest has reset itself a moment before: it is not to live again then.
            self.asked = Some(signal);
            events.send(VmEvent::UserStop(signal.as_str()));
        }
    }

    fn on_time(&mut self, events: &VmEvents) {
        if let (Some(asked), Some(deadline)) = (self.asked, self.deadline)
            && deadline <= Instant::now()
        {
            self.force(asked, "the end of the grace time", events);
        }
    }

    fn force(&mut self, signal: Signal, by: &'static str, events: &VmEvents) {
        self.deadline = None;
        if events.send(VmEvent::UserStop(by)) {
            self.forced = Some(signal);
        }
    }
}

/// Who else may end a machine, or has.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// The reason of its end.
    pub(crate) events: &'a VmEvents,
    /// The signals of this process.
    pub(crate) signals: &'a Signals,
    /// The control socket.
    pub(crate) control: &'a Control,
}

/// What to look at after one wait.
#[derive(Default)]
struct Ready {
    ended: bool,
    signal: bool,
    control: bool,
    /// Of each console.
    consoles: Vec<ConsoleReady>,
}

/// What to look at of a console.
#[derive(Clone, Copy, Default)]
struct ConsoleReady {
    fifo_empty: bool,
    input: bool,
    client: bool,
}

/// Serves everything until the machine has a reason to end.
///
/// A signal that asks for the end presses the power button of a guest that listens to it, and ends the machine of one
/// that does not. A second signal, or `grace` after the first, ends it in any case.
pub(crate) fn run(inputs: Inputs<'_>, consoles: &mut Consoles, machine: &Machine, grace: Duration) -> Ended {
    let Inputs { events, signals, control } = inputs;
    let ports = machine.ports();
    let mut stop = Stop::default();
    for (console, port) in consoles.iter_mut().zip(&ports) {
        // What waited for the guest of an earlier life.
        console.on_fifo_empty(*port);
    }
    loop {
        consoles.look_for_terminal();
        let ready = match wait(inputs, consoles, stop.deadline) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => continue,
            Err(errno) => {
                events.send(VmEvent::Internal(format!("the event loop cannot wait: {errno}")));
                Ready { ended: true, ..Ready::default() }
            }
        };
        if ready.ended
            && let Some(event) = events.get()
        {
            return Ended { event: event.clone(), asked: stop.asked, forced: stop.forced };
        }
        if ready.signal
            && let Some(signal) = next_stop(signals, consoles, &ports)
        {
            stop.on_signal(signal, events, machine, grace);
        }
        stop.on_time(events);
        if ready.control
            && let Some(event) = control.asked()
        {
            events.send(event.clone());
        }
        for ((console, port), ready) in consoles.iter_mut().zip(&ports).zip(ready.consoles) {
            if ready.fifo_empty {
                console.on_fifo_empty(*port);
            }
            if ready.input && console.receive(Some(*port)) {
                events.send(VmEvent::UserStop(CTRL_A_X));
            }
            if ready.client {
                console.accept();
            }
        }
    }
}

/// What a wait before a life of a machine is for.
#[derive(Clone, Copy)]
pub(crate) enum Until<'fd> {
    /// This time has passed.
    Passed(Duration),
    /// This descriptor is ready.
    Ready(BorrowedFd<'fd>),
}

/// Waits before a life of a machine; `Some`: it has been asked not to live.
pub(crate) fn pause(
    signals: &Signals,
    control: &Control,
    consoles: &mut Consoles,
    until: Until<'_>,
) -> Option<Ended> {
    let deadline = match until {
        Until::Passed(time) => Some(Instant::now() + time),
        Until::Ready(_) => None,
    };
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return None;
        }
        consoles.look_for_terminal();
        let awaited = match until {
            Until::Passed(_) => None,
            Until::Ready(fd) => Some(fd),
        };
        let polled = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<_> =
            [signals.as_fd(), control.as_fd()].into_iter().chain(awaited).map(polled).collect();
        let inputs_at = fds.len();
        // Of those that have one, in their order.
        let inputs: Vec<Option<PollFd<'_>>> = consoles.iter().map(Console::input).collect();
        let has_input: Vec<bool> = inputs.iter().map(Option::is_some).collect();
        fds.extend(inputs.into_iter().flatten());
        // A failure leaves nothing ready; the time passes all the same.
        let _ = poll(&mut fds, left.map_or(PollTimeout::NONE, at_least));
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let (signal, asked) = (ready(0), ready(1));
        let is_over = awaited.is_some() && ready(2);
        let mut at = inputs_at..;
        let input: Vec<bool> =
            has_input.into_iter().map(|has| has && at.next().is_some_and(&ready)).collect();
        match signal.then(|| signals.next()).flatten() {
            Some(Asked::Stop(signal)) => {
                let event = VmEvent::UserStop(signal.as_str());
                return Some(Ended { event, asked: Some(signal), forced: None });
            }
            Some(Asked::Continued) => consoles.continued(),
            // The guest of the next life is told when it begins.
            Some(Asked::Resized) | None => {}
        }
        if let Some(event) = control.asked().filter(|_| asked) {
            return Some(Ended { event: event.clone(), asked: None, forced: None });
        }
        let mut ready = consoles.iter_mut().zip(input).filter(|(_, input)| *input);
        if ready.any(|(console, _)| console.receive(None)) {
            return Some(Ended { event: VmEvent::UserStop(CTRL_A_X), asked: None, forced: None });
        }
        if is_over {
            return None;
        }
    }
}

/// Takes the signals that have arrived up to the first that asks for the end; the next is left for the one who watches
/// over it.
fn next_stop(signals: &Signals, consoles: &mut Consoles, ports: &[&dyn GuestPort]) -> Option<Signal> {
    while let Some(asked) = signals.next() {
        match asked {
            Asked::Continued => consoles.continued(),
            Asked::Resized => {}
            Asked::Stop(signal) => return Some(signal),
        }
        // Who was stopped may have missed another size.
        consoles.tell_sizes(ports);
    }
    None
}

/// Sleeps until something is ready, or the guest's time to shut down is over.
fn wait(inputs: Inputs<'_>, consoles: &Consoles, deadline: Option<Instant>) -> Result<Ready, Errno> {
    let Inputs { events, signals, control } = inputs;
    let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds = [events.as_fd(), signals.as_fd(), control.as_fd()].map(readable).to_vec();
    let mut wait_for = |fd| {
        fds.push(fd);
        fds.len() - 1
    };
    let places: Vec<_> = consoles
        .iter()
        .map(|console| {
            let fifo_empty = wait_for(readable(console.drained()));
            let input = console.input().map(&mut wait_for);
            (fifo_empty, input, console.listener().map(|fd| wait_for(readable(fd))))
        })
        .collect();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = [left, consoles.patience()].into_iter().flatten().min();
    poll(&mut fds, timeout.map_or(PollTimeout::NONE, at_least))?;
    // Errors and hang-ups count as ready: the read that follows tells which it is.
    let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
    Ok(Ready {
        ended: ready(0),
        signal: ready(1),
        control: ready(2),
        consoles: places
            .into_iter()
            .map(|(fifo_empty, input, client)| ConsoleReady {
                fifo_empty: ready(fifo_empty),
                input: input.is_some_and(ready),
                client: client.is_some_and(ready),
            })
            .collect(),
    })
}
