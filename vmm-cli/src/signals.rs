//! Signals: the ones that stop the machine arrive as a descriptor, the ones that mean nothing here are ignored.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::console;
use crate::outcome;

/// Ask for the end of the machine.
const STOP: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Would end the process by default and are no reason to: a closed pipe or terminal, a file at its limit, a soft
/// limit of CPU time.
const IGNORED: [Signal; 4] = [Signal::SIGPIPE, Signal::SIGHUP, Signal::SIGXFSZ, Signal::SIGXCPU];

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
}

impl Signals {
    /// Blocks the signals of the event loop in this thread and in all that it starts from now on, and opens the
    /// descriptor on which they arrive.
    pub(crate) fn take() -> io::Result<Self> {
        for signal in IGNORED {
            ignore(signal)?;
        }
        let mut set = SigSet::empty();
        STOP.into_iter().chain([Signal::SIGCONT]).for_each(|signal| set.add(signal));
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal, if one has arrived.
    pub(crate) fn next(&self) -> Option<Asked> {
        let info = self.0.read_signal().ok()??;
        let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())?;
        Some(if signal == Signal::SIGCONT { Asked::Continued } else { Asked::Stop(signal) })
    }

    /// Watches over an orderly stop that `first` asked for: a second signal, or the end of `grace`, ends the process
    /// at once, terminal restored. Takes the signals from the event loop, which is over.
    pub(crate) fn watch_over_stop(self, first: Signal, grace: Duration) {
        let watch = move || {
            let why = self.second_signal_or_timeout(first, grace);
            console::restore_now();
            console::tell(format_args!("vmm-cli: stop forced by {}\n", why.1));
            std::process::exit(outcome::forced(why.0 as i32));
        };
        if let Err(error) = std::thread::Builder::new().name("stop-watch".into()).spawn(watch) {
            tracing::warn!(%error, "nobody watches over the stop: a second signal will be ignored");
        }
    }

    fn second_signal_or_timeout(&self, first: Signal, grace: Duration) -> (Signal, &'static str) {
        let timeout = PollTimeout::try_from(grace).unwrap_or(PollTimeout::MAX);
        loop {
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return (first, "the grace time"),
                Ok(_) => {
                    if let Some(Asked::Stop(second)) = self.next() {
                        return (second, "a second signal");
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return (first, "a failing poll"),
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[expect(unsafe_code, reason = "a signal disposition")]
fn ignore(signal: Signal) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY:
    // - ignoring a signal installs no handler.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}
