//! `RunningVm`: a monitor that runs, its output so far, and how it ends.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::process::Process;
use super::{allowed, until};

/// A monitor that was started. Dropped, it is killed.
#[derive(Debug)]
pub struct RunningVm {
    child: Child,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    deadline: Instant,
}

/// How a monitor has ended, and what it and its guest have said.
#[derive(Debug)]
pub struct Finished {
    /// The exit code, or the signal.
    pub status: ExitStatus,
    /// Captured standard output.
    pub stdout: Vec<u8>,
    /// Captured standard error.
    pub stderr: String,
}

/// A pipe that a thread empties.
#[derive(Debug)]
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl RunningVm {
    pub(super) fn new(mut child: Child, deadline: Duration) -> Self {
        let stdout = child.stdout.take().map(Capture::start);
        let stderr = child.stderr.take().map(Capture::start);
        Self { child, stdout, stderr, deadline: Instant::now() + allowed(deadline) }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process::new(Pid::from_raw(self.child.id().cast_signed()))
    }

    /// The writing end of its standard input.
    ///
    /// # Errors
    ///
    /// That was not to be a new pipe, or was taken already.
    pub fn stdin(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().context("standard input is no pipe")
    }

    /// Waits until standard output has `text`.
    ///
    /// # Errors
    ///
    /// It ends before, or does not say it in time.
    pub fn wait_for_output(&mut self, text: &str) -> Result<()> {
        self.wait_for_lines(text, 1)
    }

    /// Waits until standard output has `text` at least `count` times.
    ///
    /// # Errors
    ///
    /// It ends before, or does not say it in time.
    pub fn wait_for_lines(&mut self, text: &str, count: usize) -> Result<()> {
        until(self.deadline, &format!("{text:?} on standard output"), || {
            // Looked at before its output is: what it said last must have been read.
            let read = self.stdout.as_ref().is_none_or(|capture| capture.reader.is_finished());
            let ended = self.child.try_wait()?.filter(|_| read);
            let said = self.stdout();
            match ended {
                _ if said.matches(text).count() >= count => Ok(Some(())),
                Some(status) => {
                    bail!("{status} before {text:?} was said, having said {said:?} and {:?}", self.stderr())
                }
                None => Ok(None),
            }
        })
    }

    /// Waits until standard error has a line that starts with `start`; returns the rest of that line.
    ///
    /// # Errors
    ///
    /// It does not say it in time.
    pub fn wait_for_message(&self, start: &str) -> Result<String> {
        until(self.deadline, &format!("{start:?} on standard error"), || {
            let said = self.stderr();
            let whole_lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            Ok(whole_lines.filter_map(|line| line.strip_prefix(start)).map(str::to_owned).next())
        })
    }

    /// What standard output has so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.as_ref().map(Capture::so_far).unwrap_or_default()).into_owned()
    }

    /// What standard error has so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.as_ref().map(Capture::so_far).unwrap_or_default()).into_owned()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process().signal(signal)
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    ///
    /// The system call failed.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Watches it for `time`.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn goes_on_for(&mut self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        ensure!(self.is_running()?, "has ended by itself: {:?}, {:?}", self.stdout(), self.stderr());
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It does not end in time, or somebody still has its output open when it has ended.
    pub fn wait(mut self) -> Result<Finished> {
        let ended = until(self.deadline, "end of the monitor", || Ok(self.child.try_wait()?));
        let Ok(status) = ended else {
            let threads = self.process().threads();
            // Those of a jail.
            let inside = self
                .process()
                .children()
                .map(|all| all.into_iter().map(Process::threads).collect::<Vec<_>>());
            bail!("has not ended: threads {threads:?}, {inside:?}, {:?}, {:?}", self.stdout(), self.stderr());
        };
        for capture in [&self.stdout, &self.stderr].into_iter().flatten() {
            until(self.deadline, "end of its output, which a process left behind holds", || {
                Ok(capture.reader.is_finished().then_some(()))
            })?;
        }
        let stdout = self.stdout.as_ref().map(Capture::so_far).unwrap_or_default();
        Ok(Finished { status, stdout, stderr: self.stderr() })
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// # Errors
    ///
    /// The exit code is not `code`.
    pub fn ensure_code(self, code: i32) -> Result<Self> {
        let Self { status, stderr, .. } = &self;
        ensure!(
            status.code() == Some(code),
            "{status} instead of code {code}; it said {:?} and {stderr:?}",
            self.text()
        );
        Ok(self)
    }

    /// # Errors
    ///
    /// It has not ended by `signal`.
    pub fn ensure_signal(self, signal: Signal) -> Result<Self> {
        let Self { status, stderr, .. } = &self;
        ensure!(status.signal() == Some(signal as i32), "{status} instead of {signal}; it said {stderr:?}");
        Ok(self)
    }

    /// # Errors
    ///
    /// Standard error lacks one of `words`.
    pub fn ensure_message(self, words: &[&str]) -> Result<Self> {
        for word in words {
            ensure!(self.stderr.contains(word), "{word:?} is missing in {:?}", self.stderr);
        }
        Ok(self)
    }

    /// # Errors
    ///
    /// Standard output is not `expected`.
    pub fn ensure_output(self, expected: &str) -> Result<Self> {
        ensure!(self.text() == expected, "said {:?} instead of {expected:?}", self.text());
        Ok(self)
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Capture {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let bytes = Arc::clone(&bytes);
            move || {
                let mut chunk = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                    lock(&bytes).extend_from_slice(&chunk[..count]);
                }
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}
