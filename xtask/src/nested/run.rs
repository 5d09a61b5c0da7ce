//! `Run`: one life of the nested host, from its start to what its command came to.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::contents::{Carried, InnerCommand, assemble};
use super::images::HostImages;
use super::machine::{Images, MachineArgs};
use super::streams::{self, Event, Port};

/// What the kernel of the nested host has written in the last run.
pub const LAST_CONSOLE: &str = "target/nested/last-console.log";
/// How much of it is shown when the nested host has died.
const TAIL_LINES: usize = 40;
/// How many streams of output there are.
const OUTPUTS: usize = 2;

/// What is run, and on what.
pub struct Run<'a> {
    pub machine: &'a MachineArgs,
    pub images: &'a HostImages,
    pub command: &'a InnerCommand,
    pub carried: &'a [Carried],
    pub timeout: Duration,
}

/// How a run has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command has ended with this status, 128 + n for signal n.
    Status(u8),
    /// It has not ended in time.
    TimedOut,
}

/// The machine's process. Dropped, it is killed.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run<'_> {
    /// Starts the nested host, passes on input and output of the command, and waits for its end.
    ///
    /// # Errors
    ///
    /// The nested host cannot be started, or has died before the command ended; then the end of its console is shown.
    pub fn run(&self) -> Result<End> {
        let mark = unique()?;
        let initrd = assemble(&self.images.base, self.command, self.carried, &mark)?;
        let console = tempfile::tempfile().context("cannot create the console's file")?;
        let (sender, events) = channel();
        let deadline = Instant::now() + self.timeout;
        let machine = self.start(&initrd, &console, &mark, sender)?;
        let end = wait(&events, deadline);
        drop(machine);
        let said = keep(console)?;
        end.with_context(|| {
            format!("{}\nthe nested host has failed; its console is {LAST_CONSOLE}", tail(&said))
        })
    }

    fn start(&self, initrd: &File, console: &File, mark: &str, events: Sender<Event>) -> Result<Machine> {
        let port = |name| Port::new(mark, name);
        let (stdin, stdout, stderr, init) = (port("stdin")?, port("stdout")?, port("stderr")?, port("init")?);
        let images = Images {
            kernel: &self.images.kernel,
            initrd: &descriptor(initrd),
            console: &descriptor(console),
        };
        let mut command =
            self.machine.command(&self.images.qemu, &images, &[&stdin, &stdout, &stderr, &init])?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start setpriv")?;
        let messages = child.stderr.take().context("no pipe")?;
        streams::send(stdin, io::stdin());
        streams::receive(stdout, mark.to_owned(), io::stdout(), events.clone());
        streams::receive(stderr, mark.to_owned(), io::stderr(), events.clone());
        streams::listen(init, events.clone());
        streams::watch(messages, events);
        Ok(Machine(child))
    }
}

/// Follows the nested host to its end.
fn wait(events: &Receiver<Event>, deadline: Instant) -> Result<End> {
    let mut status = None;
    let mut complete = 0;
    loop {
        if let Some(status) = status.filter(|_| complete == OUTPUTS) {
            return Ok(End::Status(status));
        }
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Complete) => complete += 1,
            Ok(Event::Said(line)) => match line.split_once(' ') {
                Some(("status", code)) => status = Some(code.parse().context("its status is no number")?),
                Some(("failed", why)) => bail!("{why}"),
                _ => {}
            },
            Ok(Event::Lost(why)) => bail!("{why}"),
            Ok(Event::Gone(said)) => bail!("QEMU has ended before the command: {said:?}"),
            Err(RecvTimeoutError::Timeout) => return Ok(End::TimedOut),
            Err(RecvTimeoutError::Disconnected) => bail!("nobody follows the nested host"),
        }
    }
}

/// The path by which a process of this user opens a file that has no other.
fn descriptor(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// A text that no output of a command contains and that no other run has.
fn unique() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Keeps the console as a file, and reads it.
fn keep(mut console: File) -> Result<String> {
    let mut said = Vec::new();
    console.rewind()?;
    console.read_to_end(&mut said)?;
    super::images::write(Path::new(LAST_CONSOLE), &said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
