//! `Shell`: a person at the interactive shell of a Linux guest, at one end or another of its serial port.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::pty::openpty;
use tempfile::TempDir;
use vmm_tests::harness::{LinuxGuest, LinuxReport, RunningVm, TestVm, until};

/// What the serial port is on the host.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// Standard input and output, each a pipe.
    Pipe,
    /// Standard input and output, both the terminal of a session that the monitor leads.
    Terminal,
    /// A pseudo-terminal of the monitor's own.
    Pty,
    /// A UNIX socket.
    Socket,
}

/// What the shell says when it waits for a command.
const PROMPT: &str = "# ";

/// A shell that runs. What is typed and what it says never wait for each other.
pub struct Shell {
    vm: RunningVm,
    keys: Sender<Vec<u8>>,
    chunks: Receiver<Vec<u8>>,
    /// What it has said and nobody has waited for.
    said: Vec<u8>,
    deadline: Instant,
    _directory: TempDir,
}

impl Shell {
    /// Boots `guest` with more arguments of the monitor; everything has to be done in `time`.
    pub fn start(guest: &LinuxGuest, args: &str, port: Port, time: Duration) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let vm = guest.vm("shell", "").args(args).deadline(time);
        let deadline = Instant::now() + time;
        let (vm, (reader, writer)) = match port {
            Port::Pipe => on_pipes(vm)?,
            Port::Terminal => on_terminal(vm)?,
            Port::Pty => on_pty(vm)?,
            Port::Socket => on_socket(vm, &directory, deadline)?,
        };
        let (keys, chunks) = (typist(writer), listener(reader));
        let mut shell = Self { vm, keys, chunks, said: Vec::new(), deadline, _directory: directory };
        shell.comes_up()?;
        Ok(shell)
    }

    /// Waits until the guest has come up and its shell waits for a command.
    pub fn comes_up(&mut self) -> Result<()> {
        self.wait_for(LinuxReport::END)?;
        self.wait_for(PROMPT)?;
        Ok(())
    }

    /// The monitor.
    pub fn vm(&self) -> &RunningVm {
        &self.vm
    }

    /// The same, which is at its end or shall be.
    pub fn into_vm(self) -> RunningVm {
        self.vm
    }

    /// Types `keys`, in its own time.
    pub fn types(&self, keys: impl Into<Vec<u8>>) -> Result<()> {
        self.keys.send(keys.into()).context("nobody takes keys any more")
    }

    /// Waits until the shell has said `text`; returns what it has said before, from where the last wait ended.
    pub fn wait_for(&mut self, text: &str) -> Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let found =
                self.said[searched..].windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = found {
                let rest = self.said.split_off(searched + at + text.len());
                let mut before = std::mem::replace(&mut self.said, rest);
                before.truncate(searched + at);
                return Ok(before);
            }
            searched = (self.said.len() + 1).saturating_sub(text.len());
            match self.chunks.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.said.extend(chunk),
                Err(reason) => bail!("{text:?} was not said {}, but {}", because(reason), self.last_words()),
            }
        }
    }

    /// Gives a command that says something, and waits for what that is.
    pub fn answer(&mut self, command: &str) -> Result<String> {
        // Said by its output only, not by the echo of what is typed.
        self.types(format!("echo \"ans\"\"wer: $({command}) :end\"\n"))?;
        self.wait_for("answer: ")?;
        Ok(String::from_utf8_lossy(&self.wait_for(" :end")?).into_owned())
    }

    fn last_words(&self) -> String {
        let end = &self.said[self.said.len().saturating_sub(1000)..];
        format!(
            "{:?} at the end of {} bytes, and {:?}",
            String::from_utf8_lossy(end),
            self.said.len(),
            self.vm.stderr()
        )
    }
}

fn because(reason: RecvTimeoutError) -> &'static str {
    match reason {
        RecvTimeoutError::Timeout => "in time",
        RecvTimeoutError::Disconnected => "before the end",
    }
}

type Ends = (Box<dyn Read + Send>, Box<dyn Write + Send>);

fn ends(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Ends {
    (Box::new(reader), Box::new(writer))
}

fn on_pipes(vm: TestVm) -> Result<(RunningVm, Ends)> {
    let (stdin, writer): (PipeReader, PipeWriter) = std::io::pipe()?;
    let (reader, stdout) = std::io::pipe()?;
    Ok((vm.stdin(stdin).stdout(stdout).spawn()?, ends(reader, writer)))
}

fn on_terminal(vm: TestVm) -> Result<(RunningVm, Ends)> {
    let terminal = openpty(None, None)?;
    let person = File::from(terminal.master);
    let vm = vm.through("setsid -c").stdin(terminal.slave.try_clone()?).stdout(terminal.slave);
    Ok((vm.spawn()?, ends(person.try_clone()?, person)))
}

fn on_pty(vm: TestVm) -> Result<(RunningVm, Ends)> {
    let vm = vm.args("--serial pty").spawn()?;
    let person = File::options().read(true).write(true).open(vm.wait_for_message("serial port: ")?)?;
    Ok((vm, ends(person.try_clone()?, person)))
}

fn on_socket(vm: TestVm, directory: &TempDir, deadline: Instant) -> Result<(RunningVm, Ends)> {
    let path = directory.path().join("socket");
    let vm = vm.arg("--serial").arg(format!("unix={}", path.display())).spawn()?;
    let person = until(deadline, "the socket", || Ok(UnixStream::connect(&path).ok()))?;
    Ok((vm, ends(person.try_clone()?, person)))
}

/// A thread that types what it is told. It ends with the shell, or when the other end is gone.
fn typist(mut writer: Box<dyn Write + Send>) -> Sender<Vec<u8>> {
    let (keys, told) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || told.iter().try_for_each(|text| writer.write_all(&text)));
    keys
}

/// A thread that hands on what it hears.
fn listener(mut reader: Box<dyn Read + Send>) -> Receiver<Vec<u8>> {
    let (hear, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        // A terminal whose other end is gone gives an error.
        while let Ok(count @ 1..) = reader.read(&mut chunk) {
            if hear.send(chunk[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    chunks
}
