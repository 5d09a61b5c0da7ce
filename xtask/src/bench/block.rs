//! The block benchmark's surroundings: the nested host, with everything that is measured in it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::microvm::{self, carried};
use super::{BenchArgs, PROGRAMS};

/// Rounds, unless another number is asked for.
const ROUNDS: u32 = 3;
/// Seconds that the nested host may take for itself, and for one round.
const START: u32 = 300;
const ROUND: u32 = 1200;
/// fio's jobs, and where they are inside.
const JOBS: [&str; 2] = ["tests/linux/block.fio", "/etc/block.fio"];

/// Runs the measuring program in the nested host, and gives the JSON of the report.
pub fn measure(args: &BenchArgs) -> Result<String> {
    let qemu = microvm::find()?;
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let version = args.kernel.name();
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    let timeout = START + ROUND * rounds;
    command.args(["nested", "--fio", "--guest-kernels", version, "--timeout", &timeout.to_string()]);
    microvm::carry(&mut command, &qemu);
    command.arg("--file").arg(carried(Path::new(JOBS[0]), JOBS[1]));
    command.arg("--").arg(Path::new(PROGRAMS).join("bench_block"));
    command.args(["--vmm", "/bin/vmm-cli", "--firmware", microvm::FIRMWARE]).arg("--qemu").arg(&qemu);
    command.args(["--images", &format!("/guests/linux/{version}"), "--root", "/guests/linux/disk.ext4"]);
    command.args(["--fio", "/usr/bin/fio", "--jobs", JOBS[1], "--rounds", &rounds.to_string()]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start the nested host")?;
    ensure!(output.status.success(), "the measuring program ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
