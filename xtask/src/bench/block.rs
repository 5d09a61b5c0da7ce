//! The block benchmark's surroundings: nested hosts, with everything that is measured in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::microvm::{self, carried};
use super::samples::Samples;
use super::{BenchArgs, PROGRAMS};

/// Rounds, unless another number is asked for.
const ROUNDS: u32 = 3;
/// Seconds that the nested host may take for itself, and for one round; and how many more for each second of a job. An
/// emulator that hangs does not let its guest's own deadlines pass.
const START: u32 = 300;
const ROUND: u32 = 1200;
const JOB_SECONDS: u32 = 60;
/// fio's jobs, and where they are inside.
const JOBS: [&str; 2] = ["tests/linux/block.fio", "/etc/block.fio"];
/// Of the file system on which the disk's file is made.
const FILE_SYSTEM: &str = "128M";
/// Its dirty pages stay where they are: nobody writes them back in the middle of another's job.
const NO_WRITEBACK: &str = "sysctl.vm.dirty_writeback_centisecs=0";

/// Runs the measuring program in nested hosts, one for each round and others that go on where one has died, and gives the
/// JSON of the report.
pub fn measure(args: &BenchArgs) -> Result<String> {
    let qemu = microvm::find()?;
    let mut samples = Samples::create("block")?;
    samples.run_rounds(args.rounds.unwrap_or(ROUNDS), |round, done| command(args, &qemu, round, done))?;
    samples.report("bench_block")
}

/// A nested host in which a round is measured, without the parts that are `done`.
fn command(args: &BenchArgs, qemu: &Path, round: u32, done: &[String]) -> Result<Command> {
    let version = args.kernel.name();
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    let timeout = START + ROUND + args.seconds.map_or(0, |seconds| seconds.saturating_mul(JOB_SECONDS));
    command.args(["nested", "--fio", "--guest-kernels", version, "--timeout", &timeout.to_string()]);
    command.args(["--ext4", FILE_SYSTEM, "--append", NO_WRITEBACK]);
    microvm::carry(&mut command, qemu);
    command.arg("--file").arg(carried(Path::new(JOBS[0]), JOBS[1]));
    command.arg("--").arg(PathBuf::from(PROGRAMS).join("bench_block")).arg("measure");
    command.args(["--vmm", "/bin/vmm-cli", "--firmware", microvm::FIRMWARE]).arg("--qemu").arg(qemu);
    command.args(["--images", &format!("/guests/linux/{version}"), "--root", "/guests/linux/disk.ext4"]);
    command.args(["--fio", "/usr/bin/fio", "--jobs", JOBS[1], "--directory", "/mnt"]);
    command.args(["--round", &round.to_string()]);
    if let Some(seconds) = args.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    for (option, words) in [("--done", done), ("--shape", &args.shapes)] {
        if !words.is_empty() {
            command.arg(option).arg(words.join(","));
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::{parsed, words};

    #[test]
    fn another_nested_host_is_told_what_is_done() {
        let args = parsed(&["block", "--shape", "a,b", "--seconds", "1"]).unwrap();
        let words = |done: &[&str]| {
            let done: Vec<_> = done.iter().map(|part| (*part).to_owned()).collect();
            words(&command(&args, Path::new("/qemu"), 2, &done).unwrap())
        };
        let first = words(&[]);
        assert!(first.ends_with(" --directory /mnt --round 2 --seconds 1 --shape a,b"), "{first}");
        let second = words(&["2/1/host", "2/1/vmm"]);
        assert!(second.ends_with(" --done 2/1/host,2/1/vmm --shape a,b"), "{second}");
    }
}
