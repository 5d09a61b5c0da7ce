//! A boot of Linux under measurement: from the start of the monitor's process to the mark of the guest's first program.

use std::io::{self, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::bench::probe::{Launch, Output, ProbeError, none_left, tail, wait_readable, wait_within};

/// The line that the guest's first program writes to COM1 before anything else (tests/linux/init).
const MARK: &[u8] = b"vmm: booted";

const AWAITED: &str = "the mark of the guest's first program";

/// What a boot may take. Generous, as the host may be emulated: it only tells hung from slow.
const DEADLINE: Duration = Duration::from_secs(180);

/// When a boot began, by the host's monotonic clock, and what it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Just before the process was made.
    pub start: Duration,
    /// From there until the mark was read.
    pub init: Duration,
}

/// Boots up to the mark; then the monitor is killed.
///
/// # Errors
///
/// It does not start, ends or hangs before the mark, or leaves a process behind.
pub fn to_mark(launch: &Launch) -> Result<Boot, ProbeError> {
    boot(launch, |_| Ok(()))
}

/// Boots, and waits until the guest has ended the monitor.
///
/// # Errors
///
/// Those of [`to_mark`], and a monitor that does not end.
pub fn to_end(launch: &Launch) -> Result<Boot, ProbeError> {
    boot(launch, |child| match wait_within(child, DEADLINE)? {
        Some(_) => Ok(()),
        None => Err(late("the end of the process", &[])),
    })
}

fn boot(
    launch: &Launch,
    then: impl FnOnce(&mut Child) -> Result<(), ProbeError>,
) -> Result<Boot, ProbeError> {
    let errors = Output::new()?;
    let mut command = launch.command();
    command.stdout(Stdio::piped()).stderr(errors.stdio()?);
    let start = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(ProbeError::system("clock_gettime"))?;
    let since = Instant::now();
    let mut running = Running(command.spawn().map_err(ProbeError::system("spawn"))?);
    let booted = wait_for_mark(&mut running.0, since).and_then(|init| then(&mut running.0).map(|()| init));
    drop(running);
    none_left()?;
    let init = booted.map_err(|error| error.with_more_output(errors))?;
    Ok(Boot { start: start.into(), init })
}

/// A child process; killed and reaped on drop.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended cannot be killed, one that was reaped not be waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads the child's output up to the mark, and gives the time of that.
fn wait_for_mark(child: &mut Child, since: Instant) -> Result<Duration, ProbeError> {
    let mut output = Vec::new();
    let seen = child.stdout.as_mut().map_or(Ok(Seen::End), |stdout| read_to_mark(stdout, &mut output));
    match seen.map_err(ProbeError::system("read"))? {
        Seen::Mark(at) => Ok(at - since),
        Seen::Nothing => Err(late(AWAITED, &output)),
        Seen::End => match wait_within(child, DEADLINE)? {
            Some(status) => {
                Err(ProbeError::Ended { awaited: AWAITED, status: status.to_string(), output: tail(&output) })
            }
            None => Err(late(AWAITED, &output)),
        },
    }
}

fn late(awaited: &'static str, output: &[u8]) -> ProbeError {
    ProbeError::Late { awaited, within: DEADLINE, output: tail(output) }
}

enum Seen {
    Mark(Instant),
    Nothing,
    End,
}

fn read_to_mark(stdout: &mut ChildStdout, output: &mut Vec<u8>) -> io::Result<Seen> {
    let end = Instant::now() + DEADLINE;
    let mut chunk = [0; 4096];
    while wait_readable(stdout, end.saturating_duration_since(Instant::now()))? {
        let length = stdout.read(&mut chunk)?;
        let now = Instant::now();
        if length == 0 {
            return Ok(Seen::End);
        }
        // The mark may come in pieces.
        let searched = output.len().saturating_sub(MARK.len());
        output.extend_from_slice(&chunk[..length]);
        if output[searched..].windows(MARK.len()).any(|window| window == MARK) {
            return Ok(Seen::Mark(now));
        }
    }
    Ok(Seen::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[test]
    fn a_boot_is_timed_up_to_the_mark_even_if_that_comes_in_pieces() {
        let boot =
            to_mark(&shell("sleep 0.2; printf 'log vmm: bo'; sleep 0.1; echo oted; exec sleep 60")).unwrap();
        assert!(boot.init >= Duration::from_millis(300) && boot.init < Duration::from_secs(30), "{boot:?}");
    }

    #[test]
    fn the_end_is_waited_for_where_the_guest_makes_it() {
        let started = Instant::now();
        let boot = to_end(&shell("echo vmm: booted; sleep 0.3")).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(boot.init <= started.elapsed());
    }

    #[test]
    fn starts_are_in_order() {
        let [first, second] = [(); 2].map(|()| to_end(&shell("echo vmm: booted")).unwrap());
        assert!(first.start + first.init <= second.start, "{first:?} {second:?}");
    }

    #[test]
    fn a_monitor_that_ends_without_the_mark_says_how_and_why() {
        let error = to_mark(&shell("echo out; echo err >&2; exit 4")).unwrap_err();
        assert_eq!(error.to_string(), format!("ended before {AWAITED}: exit status: 4, saying: out err"));
    }
}
