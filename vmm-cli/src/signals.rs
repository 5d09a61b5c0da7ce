//! Signals: the ones that stop the machine arrive as a descriptor, the ones that mean nothing here are ignored.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_core::thread::spawn;

use crate::console;
use crate::listener;
use crate::logging;
use crate::machine::calls::TEARDOWN_WATCH;
use crate::messages;
use crate::outcome;

/// Ask for the end of the machine.
const STOP: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Would end or stop the process by default and are no reason to: a closed pipe or terminal, a file at its limit, a
/// soft limit of CPU time, a terminal that was taken away a moment before it is read or its mode restored.
const IGNORED: [Signal; 6] =
    [Signal::SIGPIPE, Signal::SIGHUP, Signal::SIGXFSZ, Signal::SIGXCPU, Signal::SIGTTIN, Signal::SIGTTOU];

/// The signals that the event loop takes.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// End the machine.
    Stop(Signal),
    /// The process was stopped and goes on.
    Continued,
    /// The terminal has another size.
    Resized,
}

impl Signals {
    /// Blocks the signals of the event loop in this thread and in all that it starts from now on, and opens the
    /// descriptor on which they arrive.
    pub(crate) fn take() -> io::Result<Self> {
        for signal in IGNORED {
            ignore(signal)?;
        }
        let mut set = SigSet::empty();
        STOP.into_iter().chain([Signal::SIGCONT, Signal::SIGWINCH]).for_each(|signal| set.add(signal));
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal, if one has arrived.
    pub(crate) fn next(&self) -> Option<Asked> {
        let info = self.0.read_signal().ok()??;
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())?;
        Some(match signal {
            Signal::SIGCONT => Asked::Continued,
            Signal::SIGWINCH => Asked::Resized,
            signal => Asked::Stop(signal),
        })
    }

    /// Sleeps for `time`, or until a signal asks for the end of the machine.
    fn sleep(&self, time: Duration) -> Option<Signal> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wait(left) {
                Ok(true) => {
                    if let Some(Asked::Stop(signal)) = self.next() {
                        return Some(signal);
                    }
                }
                Ok(false) => return None,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for signals");
                    return None;
                }
            }
        }
    }

    /// Watches over the teardown of a machine that `asked` has ended, if a signal did: a second signal ends the
    /// process at once, and so does the end of `grace`, then with the exit code `late`. The terminal is restored and
    /// sockets are removed first.
    pub(crate) fn watch_over_teardown(self, asked: Option<Signal>, grace: Duration, late: u8) {
        let watch = move || {
            let deadline = Instant::now() + grace;
            let left = || deadline.saturating_duration_since(Instant::now());
            let first = asked.or_else(|| self.sleep(left()));
            let (why, code) = match (first, first.and_then(|_| self.sleep(left()))) {
                (_, Some(second)) => (second.as_str(), outcome::forced(second)),
                (Some(first), None) => ("the end of the grace time", outcome::forced(first)),
                (None, None) => ("the end of the grace time", late),
            };
            console::restore_now();
            listener::remove_now();
            messages::tell(format_args!("vmm-cli: stop forced by {why}\n"));
            logging::flush();
            std::process::exit(i32::from(code));
        };
        if let Err(error) = spawn(&TEARDOWN_WATCH, TEARDOWN_WATCH.name, watch) {
            tracing::warn!(%error, "nobody watches over the teardown: signals will be ignored");
        }
    }

    /// Whether a signal has arrived within `time`.
    fn wait(&self, time: Duration) -> io::Result<bool> {
        match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], at_least(time)) {
            Ok(count) => Ok(count != 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A timeout of `time`, rounded up: a wait of a fraction of a millisecond must not become a busy one.
pub(crate) fn at_least(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

#[expect(unsafe_code, reason = "a signal disposition")]
fn ignore(signal: Signal) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY:
    // - ignoring a signal installs no handler.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}
