//! `Tracee`: a program of ours that runs as the traced child of this thread.

use std::io;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Why a program cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceeError {
    /// A system call of the tracer failed.
    #[error("{what}")]
    System {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The traced program or one of its threads did something else than expected.
    #[error("expected {awaited}, and the traced program's state is {state}")]
    State {
        /// What should have happened.
        awaited: &'static str,
        /// What did.
        state: String,
    },
}

pub(super) fn system(what: &'static str) -> impl FnOnce(Errno) -> TraceeError {
    move |errno| TraceeError::System { what, source: errno.into() }
}

pub(super) fn unexpected(awaited: &'static str, state: WaitStatus) -> TraceeError {
    TraceeError::State { awaited, state: format!("{state:?}") }
}

/// The traced program; killed and reaped with its threads on drop.
#[derive(Debug)]
pub(super) struct Tracee(Pid);

impl Tracee {
    /// Starts `command` up to its first stop, which is a SIGSTOP that it sends itself.
    pub(super) fn start(command: &mut Command, options: Options) -> Result<Self, TraceeError> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| TraceeError::System { what: "start of the traced program", source })?;
        let tracee = Self(Pid::from_raw(child.id().cast_signed()));
        match wait(tracee.0)? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
            state => return Err(unexpected("its first stop", state)),
        }
        ptrace::setoptions(tracee.0, options).map_err(system("PTRACE_SETOPTIONS"))?;
        Ok(tracee)
    }

    /// The program's process and first thread.
    pub(super) fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = kill(self.0, Signal::SIGKILL);
        while wait(ANY).is_ok() {}
    }
}

/// Every child, and every thread of one, that the calling thread traces.
pub(super) const ANY: Pid = Pid::from_raw(-1);

pub(super) fn wait(pid: Pid) -> Result<WaitStatus, TraceeError> {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    waitpid(pid, Some(flags)).map_err(system("waitpid"))
}
