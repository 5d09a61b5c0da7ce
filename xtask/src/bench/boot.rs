//! The boot benchmark's surroundings: the kernels, the peers and the host, this machine or the nested one.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::microvm::{self, carried};
use super::samples::Samples;
use super::{BenchArgs, PROGRAMS};
use crate::guest_suites::has_virtualization;
use crate::host::kvm_missing;
use crate::nested;

/// The part of the samples that is counted; each other one is a round.
const COUNTS: &str = "counts";
/// Rounds that one nested host measures.
const NESTED_ROUNDS: u32 = 3;
/// How many nested hosts may die: the emulator fails now and then (docs/nested.md).
const NESTED_DEATHS: usize = 5;
/// How often a boot is tried in one, for the same reason.
const NESTED_ATTEMPTS: u32 = 2;
/// Makes its kernel clear memory when it is freed. An emulator takes up to a second to clear 2 MiB in which code has
/// run; when memory is cleared only as it is handed out, one boot pays for the one before.
const NESTED_CLEARING: &str = "init_on_free=1";
/// Seconds that the nested host may take for itself, and for one round: three times what it takes on two CPUs. An emulator that
/// hangs does not let its guest's own deadlines pass.
const NESTED_START: u32 = 300;
const NESTED_ROUND: u32 = 540;

/// Where the guests are booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// On this machine's own `/dev/kvm`.
    Native,
    /// In the nested host.
    Nested,
}

impl Host {
    /// The one that boots Linux: this machine if its KVM has VMX or SVM.
    fn that_boots_linux() -> Self {
        if kvm_missing().is_none() && has_virtualization() { Self::Native } else { Self::Nested }
    }

    /// How many of `rounds` one run measures.
    fn part(self, rounds: u32) -> u32 {
        match self {
            Self::Native => rounds,
            Self::Nested => rounds.min(NESTED_ROUNDS),
        }
    }

    /// How many runs may fail.
    fn deaths(self) -> usize {
        match self {
            Self::Native => 0,
            Self::Nested => NESTED_DEATHS,
        }
    }
}

/// Runs the measuring program where `args` says, as often as it takes, and gives the JSON of the report.
pub fn measure(args: &BenchArgs) -> Result<String> {
    let qemu = microvm::find()?;
    let host = args.host.unwrap_or_else(Host::that_boots_linux);
    let rounds = args.rounds.unwrap_or(super::BOOT_ROUNDS);
    let mut samples = Samples::create("boot")?;
    while rounds_of(&samples) < rounds || !samples.parts().iter().any(|part| part == COUNTS) {
        let done = rounds_of(&samples);
        let part = host.part(rounds - done);
        let ended_well = samples.run(&mut command(args, host, &qemu, Rounds { done, part, all: rounds })?)?;
        ensure!(!ended_well || rounds_of(&samples) == done + part, "the measuring program left rounds out");
        ensure!(ended_well || samples.deaths() <= host.deaths(), "{} runs have failed", samples.deaths());
    }
    samples.report("bench_boot")
}

fn rounds_of(samples: &Samples) -> u32 {
    samples.parts().iter().map(|part| u32::from(part != COUNTS)).sum()
}

/// What a run measures: behind those that are done, a part of all.
#[derive(Clone, Copy)]
struct Rounds {
    done: u32,
    part: u32,
    all: u32,
}

/// Measures a part of the rounds, and the counts after the last one.
fn command(args: &BenchArgs, host: Host, qemu: &Path, rounds: Rounds) -> Result<Command> {
    let Rounds { done, part, all } = rounds;
    let mut command = match host {
        Host::Native => native(args, qemu)?,
        Host::Nested => in_nested(args, qemu, part)?,
    };
    command.args(["--after", &done.to_string(), "--rounds", &part.to_string()]);
    if done + part == all {
        command.arg("--count");
    }
    if !args.shapes.is_empty() {
        command.args(["--shape", &args.shapes.join(",")]);
    }
    Ok(command)
}

fn native(args: &BenchArgs, qemu: &Path) -> Result<Command> {
    let images = nested::linux_images(&[args.kernel])?.join(args.kernel.name());
    let mut command = Command::new(Path::new(PROGRAMS).join("bench_boot"));
    command.args(["measure", "--vmm"]).arg(Path::new(PROGRAMS).join("vmm-cli"));
    command.arg("--qemu").arg(qemu);
    command.args(["--firmware", microvm::FIRMWARE]).arg("--images").arg(images);
    for (name, path) in &args.peers {
        command.arg("--peer").arg(joined(name, path));
    }
    Ok(command)
}

/// The nested host with everything that is measured in it, in `rounds` rounds. The measuring program's own words follow.
fn in_nested(args: &BenchArgs, qemu: &Path, rounds: u32) -> Result<Command> {
    let version = args.kernel.name();
    // The warm-up and the counts take as long as rounds do.
    let timeout = NESTED_START + NESTED_ROUND * (rounds + 2);
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(["nested", "--guest-kernels", version, "--timeout", &timeout.to_string()]);
    command.args(["--append", NESTED_CLEARING]);
    microvm::carry(&mut command, qemu);
    for (name, path) in &args.peers {
        command.arg("--file").arg(carried(path, &format!("/bin/{name}")));
    }
    command.arg("--").arg(Path::new(PROGRAMS).join("bench_boot"));
    command.args(["measure", "--attempts", &NESTED_ATTEMPTS.to_string()]);
    command.args(["--vmm", "/bin/vmm-cli", "--firmware", microvm::FIRMWARE]).arg("--qemu").arg(qemu);
    command.args(["--images", &format!("/guests/linux/{version}")]);
    for (name, _) in &args.peers {
        command.args(["--peer", &format!("{name}=/bin/{name}")]);
    }
    Ok(command)
}

fn joined(name: &str, path: &Path) -> OsString {
    let mut word = OsString::from(format!("{name}="));
    word.push(path);
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::{parsed, words};

    #[test]
    fn only_the_run_with_the_last_round_counts() {
        let args = parsed(&["boot", "--shape", "vmlinux_1"]).unwrap();
        let words = |done, part| {
            let rounds = Rounds { done, part, all: 5 };
            words(&command(&args, Host::Nested, Path::new("/qemu"), rounds).unwrap())
        };
        assert!(words(0, 3).ends_with(" --after 0 --rounds 3 --shape vmlinux_1"), "{}", words(0, 3));
        assert!(words(3, 2).ends_with(" --after 3 --rounds 2 --count --shape vmlinux_1"), "{}", words(3, 2));
    }
}
