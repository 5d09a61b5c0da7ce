//! The surroundings of the benchmark of plugged memory: a nested host.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{BenchArgs, PROGRAMS};
use crate::process::capture;

/// Rounds, unless another number is asked for.
const ROUNDS: u32 = 3;
/// Seconds that the nested host may take for itself, and for a round.
const START: u32 = 300;
const ROUND: u32 = 1500;

/// Runs the measuring program in a nested host, and gives the JSON of the report.
pub fn measure(args: &BenchArgs) -> Result<String> {
    capture(&mut command(args)?)
}

fn command(args: &BenchArgs) -> Result<Command> {
    let version = args.kernel.name();
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let timeout = rounds.saturating_mul(ROUND).saturating_add(START);
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(["nested", "--cpus", "2", "--guest-kernels", version, "--timeout", &timeout.to_string()]);
    command.args(["--env", "VMM_CLI=/bin/vmm-cli", "--env", "VMM_LINUX=/guests/linux"]);
    command.args(["--env", &format!("VMM_LINUX_KERNELS={version}"), "--"]);
    command.arg(Path::new(PROGRAMS).join("bench_memory_hotplug"));
    command.args(["--rounds", &rounds.to_string()]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::{parsed, words};

    #[test]
    fn a_round_more_has_more_time() {
        let args = parsed(&["memory-hotplug", "--rounds", "2", "--kernel", "6.1"]).unwrap();
        let text = words(&command(&args).unwrap());
        assert!(text.contains("--guest-kernels 6.1 --timeout 3300 "), "{text}");
        assert!(text.ends_with("bench_memory_hotplug --rounds 2"), "{text}");
    }
}
