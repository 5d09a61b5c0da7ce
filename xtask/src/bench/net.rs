//! The network benchmarks' surroundings: nested hosts, with everything that is measured in them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::microvm;
use super::samples::Samples;
use super::{BenchArgs, PROGRAMS};
use crate::process::capture;

/// Rounds, unless another number is asked for.
const ROUNDS: u32 = 3;
/// Seconds that the nested host may take for itself and one round; and how many more for each second of a measurement.
const ROUND: u32 = 900;
const MEASUREMENTS: u32 = 30;
const PROGRAM: &str = "bench_net";

/// Runs the measuring program in nested hosts, one for each round and others that go on where one has died, and gives the
/// JSON of the report.
pub fn measure(args: &BenchArgs) -> Result<String> {
    let qemu = microvm::find()?;
    let name = args.name.name();
    let mut samples = Samples::create(name)?;
    samples.run_rounds(args.rounds.unwrap_or(ROUNDS), |round, done| command(args, &qemu, round, done))?;
    let mut report = Command::new(Path::new(PROGRAMS).join(PROGRAM));
    capture(report.args(["report", "--transport", name]).arg(samples.path()))
}

/// A nested host in which a round is measured, without the parts that are `done`.
fn command(args: &BenchArgs, qemu: &Path, round: u32, done: &[String]) -> Result<Command> {
    let version = args.kernel.name();
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    let timeout = ROUND + args.seconds.map_or(0, |seconds| seconds.saturating_mul(MEASUREMENTS));
    command.args(["nested", "--cpus", "2", "--guest-kernels", version, "--timeout", &timeout.to_string()]);
    command.args(["--module", "tun", "--module", "vhost_net", "--module", "vhost_vsock"]);
    microvm::carry(&mut command, qemu);
    command.arg("--").arg(PathBuf::from(PROGRAMS).join(PROGRAM)).arg("measure");
    command.args(["--transport", args.name.name(), "--vmm", "/bin/vmm-cli"]);
    command.args(["--firmware", microvm::FIRMWARE]).arg("--qemu").arg(qemu);
    command.args(["--images", &format!("/guests/linux/{version}"), "--root", "/guests/linux/disk.ext4"]);
    command.args(["--round", &round.to_string()]);
    if let Some(seconds) = args.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    if !done.is_empty() {
        command.args(["--done", &done.join(",")]);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::{parsed, words};

    #[test]
    fn another_nested_host_is_told_what_is_done() {
        let args = parsed(&["vsock", "--seconds", "1"]).unwrap();
        let done = ["2/loopback".to_owned(), "2/vmm".to_owned()];
        let text = words(&command(&args, Path::new("/qemu"), 2, &done).unwrap());
        assert!(text.contains("bench_net measure --transport vsock"), "{text}");
        assert!(text.ends_with("--round 2 --seconds 1 --done 2/loopback,2/vmm"), "{text}");
    }
}
