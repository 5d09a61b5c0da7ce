//! The memory that a program takes while its guest is halted.

use std::fs;
use std::io::Read;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Instant;

use crate::bench::probe::{DEADLINE, Launch, Output, ProbeError, none_left, tail, wait, wait_readable};

/// What bench_halt writes to COM1 before it halts: no program's log has it.
const RUNNING: u8 = 0x1e;

const AWAITED: &str = "the guest's byte";

/// The memory of one process, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most that was resident at any time (VmHWM).
    pub peak_rss: u32,
    /// What is resident now, each page divided by the number of processes that share it.
    pub pss: u32,
}

/// Starts `instances` of a program with the guest bench_halt, waits until all guests run, and reads the
/// memory of each while all are there. All are gone on return.
///
/// # Errors
///
/// One does not start, ends, or stays silent; a process is left at the end.
pub fn measure(launch: &Launch, instances: u32) -> Result<Vec<Memory>, ProbeError> {
    let output = Output::new()?;
    let measured = start_and_read(launch, instances, &output);
    none_left()?;
    measured.map_err(|error| error.with_more_output(output))
}

fn start_and_read(launch: &Launch, instances: u32, output: &Output) -> Result<Vec<Memory>, ProbeError> {
    let mut running = Instances(Vec::new());
    for _ in 0..instances {
        running.0.push(spawn(launch, output)?);
    }
    for child in &mut running.0 {
        wait_for_guest(child)?;
    }
    running.0.iter().map(|child| read(child.id())).collect()
}

/// Child processes; killed and reaped on drop.
struct Instances(Vec<Child>);

impl Drop for Instances {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended by itself cannot be killed; the wait below tells the same.
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn spawn(launch: &Launch, output: &Output) -> Result<Child, ProbeError> {
    let mut command = launch.command();
    command.stdout(Stdio::piped()).stderr(output.stdio()?);
    command.spawn().map_err(ProbeError::system("spawn"))
}

/// Reads the child's output up to the guest's byte.
fn wait_for_guest(child: &mut Child) -> Result<(), ProbeError> {
    let mut output = Vec::new();
    let found = child.stdout.as_mut().map_or(Ok(Seen::End), |stdout| read_to_byte(stdout, &mut output));
    match found.map_err(ProbeError::system("read"))? {
        Seen::Byte => Ok(()),
        Seen::Nothing => Err(ProbeError::Late { awaited: AWAITED, within: DEADLINE, output: tail(&output) }),
        Seen::End => match wait(child)? {
            Some(status) => {
                Err(ProbeError::Ended { awaited: AWAITED, status: status.to_string(), output: tail(&output) })
            }
            None => Err(ProbeError::Late { awaited: AWAITED, within: DEADLINE, output: tail(&output) }),
        },
    }
}

enum Seen {
    Byte,
    Nothing,
    End,
}

fn read_to_byte(stdout: &mut ChildStdout, output: &mut Vec<u8>) -> std::io::Result<Seen> {
    let end = Instant::now() + DEADLINE;
    let mut chunk = [0; 4096];
    while wait_readable(stdout, end.saturating_duration_since(Instant::now()))? {
        let chunk = match stdout.read(&mut chunk)? {
            0 => return Ok(Seen::End),
            length => &chunk[..length],
        };
        output.extend_from_slice(chunk);
        if chunk.contains(&RUNNING) {
            return Ok(Seen::Byte);
        }
    }
    Ok(Seen::Nothing)
}

fn read(pid: u32) -> Result<Memory, ProbeError> {
    Ok(Memory { peak_rss: field(pid, "status", "VmHWM")?, pss: field(pid, "smaps_rollup", "Pss")? })
}

fn field(pid: u32, file: &'static str, field: &'static str) -> Result<u32, ProbeError> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(ProbeError::system("read of /proc"))?;
    kib(&text, field).ok_or(ProbeError::Proc { pid, file, field })
}

/// The value of the line `field:   N kB`.
fn kib(text: &str, field: &str) -> Option<u32> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[test]
    fn value_of_a_field_is_that_of_its_line_and_no_longer_name() {
        let text = "Pss_Dirty:          12 kB\nPss:               345 kB\nThreads:\t2\n";
        assert_eq!(kib(text, "Pss"), Some(345));
        assert_eq!(kib(text, "Pss_Dirty"), Some(12));
        assert_eq!(kib(text, "Threads"), None);
        assert_eq!(kib(text, "Rss"), None);
    }

    #[test]
    fn instances_are_measured_once_all_have_written_the_byte() {
        let memory = measure(&shell(r"echo log; printf '\036'; kill -STOP $$"), 3).unwrap();
        assert_eq!(memory.len(), 3);
        // Three processes share the pages of one program, so a share of them is less than what is resident.
        assert!(memory.iter().all(|one| one.pss > 0 && one.pss < one.peak_rss), "{memory:?}");
    }

    #[test]
    fn an_instance_that_ends_says_how_and_why() {
        let error = measure(&shell("echo out; echo err >&2; exit 4"), 1).unwrap_err();
        assert_eq!(error.to_string(), "ended before the guest's byte: exit status: 4, saying: out err");
    }
}
