//! Watch: the two processes around a machine in its jail, the one outside and the first one inside, from its start to its end.
//!
//! The one outside is who was started: it passes signals on, and ends with the code of the machine. The first one inside is
//! process 1 of the PID namespace, for which the kernel ignores every signal without a handler, and which inherits orphans;
//! the machine, process 2, is spared both. Each dies with the one before it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::syscalls;

/// Passed on to the machine: those that ask for its end, and those of which it dies.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM];

/// Nothing to those who watch: some would end them and mean nothing to a machine, see `signals.rs`; others are for a machine alone,
/// also while it has a thread before it takes them.
const IGNORED: [Signal; 8] = [
    Signal::SIGPIPE,
    Signal::SIGHUP,
    Signal::SIGXFSZ,
    Signal::SIGXCPU,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// The code of a process that a signal has ended, as shells count it.
const BY_SIGNAL: u8 = 128;

/// The signals of this process and of those that it makes, blocked, so that none is lost.
pub(super) struct Blocked {
    set: SigSet,
    before: SigSet,
}

impl Blocked {
    /// Blocks them.
    pub(super) fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        PASSED_ON.into_iter().chain(IGNORED).chain([Signal::SIGCHLD]).for_each(|signal| set.add(signal));
        syscalls::hear_of_children()?;
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { set, before })
    }

    /// Goes back to what this process was started with.
    pub(super) fn undo(&self) -> io::Result<()> {
        Ok(self.before.thread_set_mask()?)
    }

    fn as_descriptor(&self) -> io::Result<SignalFd> {
        Ok(SignalFd::with_flags(&self.set, SfdFlags::SFD_CLOEXEC)?)
    }
}

/// Watches over the first process inside, as the one outside; returns the exit code of the machine.
///
/// # Errors
/// The kernel does not say what happens.
pub(super) fn from_outside(first: Pid, blocked: &Blocked, mut inside: &PipeWriter) -> io::Result<u8> {
    let signals = blocked.as_descriptor()?;
    loop {
        let Some(info) = next(&signals)? else { continue };
        match signal_of(&info) {
            Some(Signal::SIGCHLD) => {
                if let Some(code) = code_of(waitpid(first, Some(WaitPidFlag::WNOHANG))?) {
                    return Ok(code);
                }
            }
            // A terminal has told the machine too, which is in the same process group.
            Some(signal) if PASSED_ON.contains(&signal) && info.ssi_code != libc::SI_KERNEL => {
                // Nobody reads any more: the end is on its way.
                let _ = inside.write_all(&[signal as u8]);
            }
            _ => {}
        }
    }
}

/// Watches over the machine, as the first process inside; returns the exit code of the machine. What comes from `outside` are
/// signals to pass on. To this process itself none can be sent but by those who send them to all.
///
/// # Errors
/// The kernel does not say what happens.
pub(super) fn from_inside(machine: Pid, blocked: &Blocked, mut outside: &PipeReader) -> io::Result<u8> {
    let signals = blocked.as_descriptor()?;
    loop {
        let mut fds = [signals.as_fd(), outside.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            ready => ready?,
        };
        let [of_signals, of_outside] = fds.map(|fd| fd.any().unwrap_or(false));
        if of_signals
            && let Some(info) = next(&signals)?
            && signal_of(&info) == Some(Signal::SIGCHLD)
            && let Some(code) = reap(machine)?
        {
            return Ok(code);
        }
        if of_outside {
            let mut number = [0];
            // Nobody is outside any more: this process is being killed.
            if outside.read(&mut number)? == 0 {
                return Ok(BY_SIGNAL + Signal::SIGKILL as u8);
            }
            if let Ok(signal) = Signal::try_from(i32::from(number[0])) {
                // It fails where the machine has ended, of which the kernel tells next.
                let _ = kill(machine, signal);
            }
        }
    }
}

/// Takes leave of all children that have ended; the code of the machine, if it is among them.
fn reap(machine: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        let ended = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            ended => ended?,
        };
        if ended.pid() == Some(machine) {
            code = code_of(ended);
        }
    }
}

/// The exit code that `status` comes to, if it is an end.
fn code_of(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => Some(code as u8),
        WaitStatus::Signaled(_, signal, _) => Some(BY_SIGNAL + signal as u8),
        _ => None,
    }
}

/// The next signal, which is waited for.
fn next(signals: &SignalFd) -> io::Result<Option<siginfo>> {
    match signals.read_signal() {
        Err(Errno::EINTR) => Ok(None),
        info => Ok(info?),
    }
}

fn signal_of(info: &siginfo) -> Option<Signal> {
    Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_the_code_that_a_shell_counts() {
        let pid = Pid::from_raw(7);
        assert_eq!(code_of(WaitStatus::Exited(pid, 65)), Some(65));
        assert_eq!(code_of(WaitStatus::Signaled(pid, Signal::SIGKILL, false)), Some(137));
        assert_eq!(code_of(WaitStatus::Stopped(pid, Signal::SIGSTOP)), None);
        assert_eq!(code_of(WaitStatus::StillAlive), None);
    }

    #[test]
    fn no_signal_is_both_passed_on_and_ignored() {
        assert!(PASSED_ON.iter().all(|signal| !IGNORED.contains(signal)));
    }
}
