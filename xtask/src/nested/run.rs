//! `Run`: one life of the nested host, from its start to what its command came to.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

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

/// How often the nested host says that it lives (`init.sh`), and how many times in a row it may fail to: an emulator that hangs
/// lets no deadline pass inside, and may hang until the command's time is over. Counted, so that a machine that was stopped
/// for long is heard first.
const BEAT: Duration = Duration::from_secs(10);
const MISSED_BEATS: u32 = 30;
/// Between how many beats the clock inside is compared with the one here.
const COMPARED_BEATS: u32 = 3;

/// What is run, and on what.
pub struct Run<'a> {
    pub machine: &'a MachineArgs,
    pub images: &'a HostImages,
    pub command: &'a InnerCommand,
    pub carried: &'a [Carried],
    pub timeout: Duration,
    /// The file to which is added what was recorded.
    pub record: Option<&'a Path>,
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
        let mut recorded = String::new();
        let end = wait(&events, deadline, BEAT, &mut recorded);
        drop(machine);
        if let Some(path) = self.record {
            add(path, &recorded).with_context(|| format!("cannot write {}", path.display()))?;
        }
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

/// Adds to a file that others add to at the same time.
fn add(path: &Path, text: &str) -> io::Result<()> {
    File::options().create(true).append(true).open(path)?.write_all(text.as_bytes())
}

/// Follows the nested host, which says something after each `beat`, to its end; adds to `recorded` what it has recorded.
fn wait(events: &Receiver<Event>, deadline: Instant, beat: Duration, recorded: &mut String) -> Result<End> {
    let mut status = None;
    let mut complete = 0;
    let mut missed = 0;
    let mut clock = Clock::default();
    loop {
        if let Some(status) = status.filter(|_| complete == OUTPUTS) {
            return Ok(End::Status(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left.min(beat));
        missed = if event.is_ok() { 0 } else { missed + 1 };
        match event {
            Ok(Event::Complete) => complete += 1,
            Ok(Event::Said(line)) => match line.split_once(' ') {
                Some(("status", code)) => status = Some(code.parse().context("its status is no number")?),
                Some(("failed", why)) => bail!("{why}"),
                Some(("record", line)) => *recorded += &format!("{line}\n"),
                Some(_) => {}
                None => clock.ensure_right(beat)?,
            },
            Ok(Event::Lost(why)) => bail!("{why}"),
            Ok(Event::Gone(said)) => bail!("QEMU has ended before the command: {said:?}"),
            Err(RecvTimeoutError::Timeout) if left <= beat => return Ok(End::TimedOut),
            Err(RecvTimeoutError::Timeout) if missed > MISSED_BEATS => {
                bail!("nothing was heard of it for {} seconds", (beat * missed).as_secs())
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("nobody follows the nested host"),
        }
    }
}

/// What is known of the clock of the nested host. Its kernel measures the frequency of its clock while it boots; where the emulator is kept
/// from running at that moment, the clock goes several times too fast for ever, and whatever has a deadline fails.
#[derive(Default)]
struct Clock {
    beats: u32,
    first: Option<Instant>,
}

impl Clock {
    /// Another beat is heard. The time of the first few is compared with the time here, once: later ones may be heard late, all at a time.
    fn ensure_right(&mut self, beat: Duration) -> Result<()> {
        let first = *self.first.get_or_insert_with(Instant::now);
        self.beats += 1;
        let (here, inside) = (first.elapsed(), beat * COMPARED_BEATS);
        ensure!(
            self.beats != COMPARED_BEATS + 1 || here * 2 > inside,
            "its clock is wrong: {} seconds inside are {} here",
            inside.as_secs(),
            here.as_secs()
        );
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_nested_host_that_falls_silent_is_given_up() {
        let (_sender, events) = channel();
        let error =
            wait(&events, Instant::now() + LONG, Duration::from_millis(1), &mut String::new()).unwrap_err();
        assert!(error.to_string().starts_with("nothing was heard of it"), "{error}");
    }

    #[test]
    fn one_that_says_that_it_lives_has_until_its_deadline() {
        let (sender, events) = channel();
        std::thread::spawn(move || {
            while sender.send(Event::Said("alive".into())).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let deadline = Instant::now() + Duration::from_millis(300);
        assert_eq!(
            wait(&events, deadline, Duration::from_millis(5), &mut String::new()).unwrap(),
            End::TimedOut
        );
    }

    #[test]
    fn one_whose_clock_is_too_fast_is_given_up_and_one_that_is_heard_late_is_not() {
        let heard = |beats: usize| {
            let (sender, events) = channel();
            for _ in 0..beats {
                sender.send(Event::Said("alive".into())).unwrap();
            }
            wait(&events, Instant::now() + Duration::from_millis(10), LONG, &mut String::new())
        };
        assert_eq!(heard(3).unwrap(), End::TimedOut);
        let error = heard(4).unwrap_err();
        assert!(error.to_string().starts_with("its clock is wrong"), "{error}");
        let mut clock = Clock::default();
        let beat = Duration::from_millis(1);
        (0..3).for_each(|_| clock.ensure_right(beat).unwrap());
        std::thread::sleep(beat * 3);
        (0..9).for_each(|_| clock.ensure_right(beat).unwrap());
    }

    #[test]
    fn it_ends_as_its_command_when_all_output_has_come() {
        let (sender, events) = channel();
        let said = |text: &str| Event::Said(text.into());
        for event in
            [said("record a b"), Event::Complete, said("record c"), said("status 3"), Event::Complete]
        {
            sender.send(event).unwrap();
        }
        let mut recorded = String::new();
        assert_eq!(wait(&events, Instant::now() + LONG, LONG, &mut recorded).unwrap(), End::Status(3));
        assert_eq!(recorded, "a b\nc\n");
    }
}
