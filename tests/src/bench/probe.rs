//! A program under measurement: how it is started, awaited and cleared away.
#![expect(unsafe_code, reason = "pidfd_open and pidfd_send_signal have no safe wrapper here")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::wait::{WaitPidFlag, waitpid};

/// What a program may take to its first exit, its end or its first byte. Generous: it only tells hung from
/// slow.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Longest part of a program's output that an error repeats, in bytes.
const OUTPUT_TAIL: usize = 300;

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
}

/// Why a program could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A system call of the measuring side failed.
    #[error("{what}")]
    System {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The program ended in another way or at another time than the guest would make it.
    #[error("ended before {awaited}: {status}{}", said(output))]
    Ended {
        /// What should have happened first.
        awaited: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// What should have happened did not in time.
    #[error("{awaited} did not come within {} s{}", within.as_secs(), said(output))]
    Late {
        /// What should have happened.
        awaited: &'static str,
        /// The time it had.
        within: Duration,
        /// The end of what it wrote.
        output: String,
    },
    /// A process was still there after all had been killed and reaped.
    #[error("a process was left behind")]
    LeftBehind,
    /// A field is missing in a file of /proc.
    #[error("no {field} in /proc/{pid}/{file}")]
    Proc {
        /// The process.
        pid: u32,
        /// The file.
        file: &'static str,
        /// The field.
        field: &'static str,
    },
}

impl ProbeError {
    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }

    /// Adds to what the program said that which it said on another stream.
    #[must_use]
    pub(super) fn with_more_output(mut self, more: Output) -> Self {
        if let Self::Ended { output, .. } | Self::Late { output, .. } = &mut self {
            *output = tail(format!("{output} {}", more.tail()).as_bytes());
        }
        self
    }
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(", saying: {output}") }
}

impl Launch {
    /// The command, with nothing to read.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null());
        command
    }

    /// The time from just before the process is made to its end; the guest must make it end with status 0.
    ///
    /// # Errors
    ///
    /// It does not start, ends with another status or not at all, or leaves a process behind.
    pub fn process_end(&self) -> Result<Duration, ProbeError> {
        let output = Output::new()?;
        let mut command = self.command();
        command.stdout(output.stdio()?).stderr(output.stdio()?);
        let start = Instant::now();
        let mut child = command.spawn().map_err(ProbeError::system("spawn"))?;
        let status = wait(&mut child)?;
        let elapsed = start.elapsed();
        none_left()?;
        match status {
            Some(status) if status.success() => Ok(elapsed),
            Some(status) => Err(ProbeError::Ended {
                awaited: "the guest's reset",
                status: status.to_string(),
                output: output.tail(),
            }),
            None => Err(ProbeError::Late {
                awaited: "the end of the process",
                within: DEADLINE,
                output: output.tail(),
            }),
        }
    }
}

/// Reaps `child` when it ends, or kills and reaps it at the deadline: then there is no status.
pub(super) fn wait(child: &mut Child) -> Result<Option<ExitStatus>, ProbeError> {
    wait_within(child, DEADLINE)
}

/// The same with another deadline.
pub(super) fn wait_within(child: &mut Child, within: Duration) -> Result<Option<ExitStatus>, ProbeError> {
    let ended = PidFd::open(child.id()).and_then(|pidfd| pidfd.wait(within));
    if !matches!(ended, Ok(true)) {
        child.kill().map_err(ProbeError::system("kill"))?;
    }
    let status = child.wait().map_err(ProbeError::system("wait"))?;
    Ok(ended.map_err(ProbeError::system("poll of a pidfd"))?.then_some(status))
}

/// # Errors
///
/// [`ProbeError::LeftBehind`] if the calling thread still has a child, orphans it inherited included.
pub(super) fn none_left() -> Result<(), ProbeError> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    match waitpid(None, Some(flags)) {
        Err(Errno::ECHILD) => Ok(()),
        _ => Err(ProbeError::LeftBehind),
    }
}

/// Waits until `file` has something to read or has reached its end.
///
/// # Returns
///
/// Whether it has, within `timeout`.
pub(super) fn wait_readable(file: &impl AsFd, timeout: Duration) -> io::Result<bool> {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A file that takes what a program writes, so that an error can repeat the end of it.
pub(super) struct Output(File);

impl Output {
    pub(super) fn new() -> Result<Self, ProbeError> {
        tempfile::tempfile().map(Self).map_err(ProbeError::system("temporary file"))
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    pub(super) fn stdio(&self) -> Result<Stdio, ProbeError> {
        self.0.try_clone().map(Stdio::from).map_err(ProbeError::system("dup"))
    }

    /// The end of what was written, on one line; empty if there is nothing or it cannot be read.
    pub(super) fn tail(mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.0.rewind().and_then(|()| self.0.read_to_end(&mut bytes));
        read.map_or_else(|_| String::new(), |_| tail(&bytes))
    }
}

/// The end of `bytes` as one line of text.
pub(super) fn tail(bytes: &[u8]) -> String {
    let end = &bytes[bytes.len().saturating_sub(OUTPUT_TAIL)..];
    let text = String::from_utf8_lossy(end);
    text.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A process that cannot be mistaken for a later one with the same number.
pub(super) struct PidFd(OwnedFd);

impl PidFd {
    /// Opens process `pid`, a child that has not been reaped.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_ulong::from(pid), 0) };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Whether the process ends within `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_readable(&self.0, timeout)
    }

    /// Sends SIGKILL; the process may have ended.
    pub(super) fn kill(&self) {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open for the call and a null siginfo is allowed; no memory of ours is
        // touched.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[test]
    fn time_to_the_end_includes_what_the_program_does() {
        let elapsed = shell("sleep 0.2").process_end().unwrap();
        assert!(elapsed >= Duration::from_millis(200), "{elapsed:?}");
    }

    #[test]
    fn another_end_is_an_error_with_status_and_last_words() {
        let error = shell("echo one; echo two >&2; exit 3").process_end().unwrap_err();
        assert_eq!(error.to_string(), "ended before the guest's reset: exit status: 3, saying: one two");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let launch = Launch { program: "/nonexistent/program".into(), args: vec![] };
        assert!(matches!(launch.process_end(), Err(ProbeError::System { what: "spawn", .. })));
    }

    #[test]
    fn tail_is_one_line_of_bounded_length() {
        assert_eq!(tail(b"  a\n\n\x1eb\tc\r\n"), "a b c");
        assert_eq!(tail(&[b'x'; 2 * OUTPUT_TAIL]).len(), OUTPUT_TAIL);
    }

    #[test]
    fn a_killed_process_is_seen_as_ended_and_a_sleeping_one_is_not() {
        let mut child = shell("exec sleep 60").command().spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(!pidfd.wait(Duration::from_millis(20)).unwrap());
        pidfd.kill();
        assert!(pidfd.wait(DEADLINE).unwrap());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_child_not_reaped_is_left_behind() {
        let mut child = shell("exec sleep 60").command().spawn().unwrap();
        assert!(matches!(none_left(), Err(ProbeError::LeftBehind)));
        child.kill().unwrap();
        child.wait().unwrap();
        none_left().unwrap();
    }
}
